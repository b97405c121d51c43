"""Visits without gradients: what a truncated backward makes of the visits before its last ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def constant_step(x: Tensor, y: Tensor) -> Tensor:
    """The value of `y`, as if it were x plus a constant: to the bit y, and its gradient is that of x."""
    return _ConstantStep.apply(x, y)


class _ConstantStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy, None
