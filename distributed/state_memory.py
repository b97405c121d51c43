"""How much memory a rank's weights, gradients and optimizer state take, worked out before anything is allocated.

Activations are not counted: they depend on micro-batch and recompute policy, and a dry run measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distributed.dispatch_plan import owned_experts
from distributed.recipe import Recipe
from model.bank import ExpertBank
from model.moeut import MoEUT


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the rank that holds most: `weights` in the model's type; `gradients` in fp32; `masters`, fp32 copies; `moments`."""

    weights: int
    gradients: int
    masters: int
    moments: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.masters + self.moments


def state_bytes(recipe: Recipe, world: int, dtype: torch.dtype) -> StateBytes:
    """What rank 0..world-1 hold at most, experts partitioned as `expert_parallel` says.

    The plain engine keeps fp32 weights as their own masters. DeepSpeed keeps masters always and cuts them and the moments over
    the ranks that hold the same parameters (ZeRO 1), at stage 2 the gradients as well.
    """
    replicated, banks = _numbers(recipe)
    ep = recipe.expert_parallel.size
    local = replicated + sum(per_expert * len(owned_experts(n, ep, ep - 1)) for n, per_expert in banks)
    plain = recipe.train.engine == "plain"
    # Replicated parameters are cut over all ranks, expert banks over those that own the same experts.
    shard = local if plain else -(-replicated // world) + -(-(local - replicated) * ep // world)
    moments = {"adamw": 2, "sgd": 0}[recipe.train.optimizer]
    return StateBytes(
        weights=local * dtype.itemsize,
        gradients=4 * (shard if recipe.train.zero_stage == 2 and not plain else local),
        masters=0 if plain and dtype == torch.float32 else 4 * shard,
        moments=4 * moments * shard,
    )


def _numbers(recipe: Recipe) -> tuple[int, list[tuple[int, int]]]:
    """Parameters that every rank has, and (experts, parameters an expert) of every bank that is partitioned."""
    with torch.device("meta"):
        model = MoEUT(recipe.model)
    partitioned = recipe.expert_parallel.size > 1
    banks = [
        (bank.global_shape[0], bank.global_shape[1] * bank.global_shape[2])
        for name, bank in model.named_modules()
        if isinstance(bank, ExpertBank) and partitioned and (".feed_forward." in name or recipe.expert_parallel.attention)
    ]
    stored = sum(parameter.numel() for parameter in model.parameters())
    return stored - sum(n * per_expert for n, per_expert in banks), banks
