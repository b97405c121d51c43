"""The optimizer engine: gradients summed over ranks and micro-batches, clipped, stepped. Two forms, one face.

`deepspeed` (ZeRO 1 and 2) is for any world; `plain` is for a world of one and needs nothing but torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distributed.engine_choice import choose_engine
from distributed.fragment import Fragment
from distributed.topology import Topology
from distributed.train_config import TrainConfig
from model.exchange import Exchange
from model.sharding import Box


class ShardedModel(Protocol):
    """What an engine asks of a module: which parameters are partitioned over how many ranks, where each lies in its global tensor,
    and whom to tell of backwards and of changed weights."""

    exchanges: list[Exchange]

    def boxes(self) -> dict[str, Box]: ...

    def partitioned_parameters(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class StepReport:
    """What a step did. `grad_norm` is the global norm before clipping; a gradient that is not finite is `skipped`."""

    grad_norm: float
    skipped: bool


class Engine(Protocol):
    """One optimizer step is any number of `backward` calls, the last one marked, then `step`."""

    module: Callable[..., Any]
    """What to call for a forward pass."""

    @property
    def applied_steps(self) -> int:
        """Steps that changed the weights (skipped ones do not count): Adam's counter."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of `loss` to the step's gradient: the SUM over micro-batches and ranks, never a mean."""
        ...

    def step(self, lr: float) -> StepReport:
        """Clip by the global norm, update with learning rate `lr`, and forget the gradient."""
        ...

    def fragments(self) -> list[Fragment]:
        """Masters and moments owned by this rank, as live views; over all ranks every entry appears exactly once."""
        ...

    def finish_load(self, applied_steps: int) -> None:
        """After the fragments were overwritten: parameters follow their masters on all ranks, Adam's counter is set."""
        ...


def build_engine(model: nn.Module, train: TrainConfig, topology: Topology) -> Engine:
    """The engine that `train.engine` names; see `choose_engine`."""
    if choose_engine(train, topology.world, torch.distributed.is_initialized()) == "plain":
        from distributed.engine_plain import PlainEngine

        return PlainEngine(model, train)
    from distributed.engine_deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, train, topology)


def build_optimizer(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    """torch's AdamW or SGD over `groups`, with weight decay on all parameters as in the paper's recipe."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, weight_decay=train.weight_decay)
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, weight_decay=train.weight_decay)


def prepare_moments(optimizer: torch.optim.Optimizer) -> None:
    """Create AdamW's state as its first step would, so that a checkpoint can be loaded into a fresh engine."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(0.0, dtype=torch.float32), **moments}


def set_step_counter(optimizer: torch.optim.Optimizer, applied_steps: int) -> None:
    """Make AdamW's bias correction count from `applied_steps`."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(applied_steps)
