"""Batch norm over tokens, whose running statistics move once a step.

In training a token is normalised by the tokens of its micro-batch, later ones and other sequences included; when evaluating by running
statistics, so that nothing passes between tokens.

Shape suffixes: T tokens of all sequences, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels.rows import wide_dtype
from model.initialise import Constant, Rules
from model.moved import Moved
from model.router import Record

EPS, MOMENTUM = 1e-5, 0.1


class BatchNorm(Moved):
    """(x - mean) / sqrt(variance + 1e-5) * weight + bias of every feature (arXiv 1502.03167), in float32 at least.

    Running statistics go a tenth of the way to those of each step, over its micro-batches, ranks and visits (torch: of each
    forward), with the biased variance. They are float32 in a model of any narrower type.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, name: str, features: int) -> None:
        super().__init__()
        self.name = name
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_variance", torch.ones(features))

    def forward(self, x_TF: Tensor, record: Record) -> Tensor:
        """[T, F] in the type of `x_TF`. In training the sums of x, of its square, and of tokens go to `record`."""
        wide_TF = x_TF.to(wide_dtype(x_TF.dtype))
        mean_F, variance_F = self.running_mean, self.running_variance
        if self.training:
            record.setdefault("moments", {})[self.name] = _moments(wide_TF.detach())
            n_tokens = max(len(wide_TF), 1)
            mean_F = wide_TF.sum(dim=0) / n_tokens
            variance_F = (wide_TF - mean_F).square().sum(dim=0) / n_tokens
        y_TF = (wide_TF - mean_F) * (variance_F + EPS).rsqrt() * self.weight + self.bias
        return y_TF.to(x_TF.dtype)

    def told_by(self, record: Record) -> Tensor:
        """[2F + 1]: the sums of a visit."""
        moments: Tensor = record["moments"][self.name]
        return moments

    def move(self, total: Tensor) -> None:
        """Towards the mean and variance of the step; a step without tokens says nothing."""
        n_tokens = total[-1]
        if not n_tokens:
            return
        mean_F, square_F = (total[:-1] / n_tokens).chunk(2)
        self.running_mean.lerp_(mean_F.to(self.running_mean), MOMENTUM)
        self.running_variance.lerp_((square_F - mean_F.square()).clamp_min(0).to(self.running_variance), MOMENTUM)

    def init_rules(self, scale: float) -> Rules:
        """The identity behind the norm."""
        return {"weight": Constant(1.0), "bias": Constant(0.0)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        running = {name: getattr(self, name) for name in ("running_mean", "running_variance")}
        super()._apply(fn, recurse)
        for name, value in running.items():  # not through a narrower type, in which values near their last move would not move
            changed = getattr(self, name)
            setattr(self, name, value.to(changed.device, wide_dtype(changed.dtype)))
        return self


def _moments(x_TF: Tensor) -> Tensor:
    sums = (x_TF.sum(dim=0, dtype=torch.float64), x_TF.square().sum(dim=0, dtype=torch.float64))
    return torch.cat([*sums, torch.full((1,), len(x_TF), dtype=torch.float64, device=x_TF.device)])
