"""How much memory a rank's weights, gradients and optimizer state take, worked out before anything is allocated.

Activations are not counted: they depend on micro-batch and recompute policy, and a dry run measures them.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from distributed.dispatch_plan import owned_experts
from distributed.recipe import Recipe
from model.bank import ExpertBank
from model.moeut import MoEUT
from model.table_exchange import TableSlot


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the rank that holds most: `weights` in the model's type; `gradients`, `masters` (copies), `moments`, in fp32 at least."""

    weights: int
    gradients: int
    masters: int
    moments: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.masters + self.moments


def state_bytes(recipe: Recipe, world: int, dtype: torch.dtype) -> StateBytes:
    """What rank 0..world-1 hold at most, experts and tables cut as `expert_parallel` and `table_parallel` say.

    The plain engine keeps weights of fp32 or fp64 as their own masters. DeepSpeed keeps masters always and cuts them and the moments over
    the ranks that hold the same parameters (ZeRO 1), at stage 2 the gradients as well.
    """
    replicated, parts = _numbers(recipe)
    installed = importlib.util.find_spec("deepspeed") is not None
    plain = recipe.train.engine == "plain" or (recipe.train.engine == "auto" and (recipe.train.precision == "fp64" or not installed))
    # Replicated parameters are cut over all ranks, parts over those that hold the same part.
    held = [replicated, *(part.numbers for part in parts)]
    shard = sum(held) if plain else sum(-(-n * ranks // world) for n, ranks in zip(held, [1, *(part.ranks for part in parts)], strict=True))
    moments = {"adamw": 2, "sgd": 0}[recipe.train.optimizer]
    wide = max(4, dtype.itemsize)
    return StateBytes(
        weights=sum(held) * dtype.itemsize,
        gradients=wide * (shard if recipe.train.zero_stage == 2 and not plain else sum(held)),
        masters=0 if plain and dtype.itemsize == wide else wide * shard,
        moments=wide * moments * shard,
    )


class _Part(NamedTuple):
    """Parameters of a bank or table that the rank with the largest part holds, of `ranks` that share it."""

    numbers: int
    ranks: int


def _numbers(recipe: Recipe) -> tuple[int, list[_Part]]:
    """Parameters that every rank has, and the parts of those that a group of ranks shares."""
    with torch.device("meta"):
        model = MoEUT(recipe.model)
    shared, parts = 0, []
    for name, module in model.named_modules():
        if isinstance(module, TableSlot):
            ranks, axis = recipe.table_parallel.size, -1
        elif isinstance(module, ExpertBank) and (".feed_forward." in name or recipe.expert_parallel.attention):
            ranks, axis = recipe.expert_parallel.size, 0
        else:
            continue
        for shard in module.shards().values():
            whole, cut = math.prod(shard.box.global_shape), shard.box.global_shape[axis]
            shared += whole
            parts.append(_Part(whole // cut * len(owned_experts(cut, ranks, ranks - 1)), ranks))
    return sum(parameter.numel() for parameter in model.parameters()) - shared, parts
