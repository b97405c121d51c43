"""Layer norm of a residual stream that is kept wider than the weights.

In bf16 the stream stays float32, as in the paper's code under autocast: rounding it at every addition of every visit
doubled the error of a MoEUT's gradients (8 visits, 64 micro-batches: 1.0% against 0.5% of the median tensor).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.norm_read import Read, norm_read, wide_layer_norm


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` computed and returned in at least float32, whatever its weights are.

    With `repeats` every visit of a layer has gain and bias of its own: `weight` and `bias` are [repeats, D].
    """

    def __init__(self, d_model: int, repeats: int | None = None) -> None:
        super().__init__(d_model)
        self.repeats = repeats
        if repeats is not None:
            self.weight, self.bias = (nn.Parameter(torch.empty(repeats, d_model)) for _ in range(2))

    def forward(self, x: Tensor, repeat: int = 0) -> Tensor:
        """The rows of `x` [..., D] with mean 0 and variance 1, times gain, plus bias."""
        return wide_layer_norm(x, *self._of(repeat), self.eps)

    def read(self, x: Tensor, y: Tensor | None = None, data: bool = True, repeat: int = 0) -> Read:
        """x + y, the same in the weights' type where `data` is wanted, and its norm in the weights' type."""
        return norm_read(x, y, *self._of(repeat), self.eps, data)

    def _of(self, repeat: int) -> tuple[Tensor, Tensor]:
        return (self.weight, self.bias) if self.repeats is None else (self.weight[repeat], self.bias[repeat])
