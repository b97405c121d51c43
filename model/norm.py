"""Layer norm of a residual stream that is kept wider than the weights.

In bf16 the stream stays float32, as in the paper's code under autocast: rounding it at every addition of every visit
doubled the error of a MoEUT's gradients (8 visits, 64 micro-batches: 1.0% against 0.5% of the median tensor).
"""

from __future__ import annotations

from torch import Tensor, nn

from kernels.norm_read import Read, norm_read, wide_layer_norm


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` computed and returned in at least float32, whatever its weights are."""

    def forward(self, x: Tensor) -> Tensor:
        """The rows of `x` [..., D] with mean 0 and variance 1, times `weight`, plus `bias`."""
        return wide_layer_norm(x, self.weight, self.bias, self.eps)

    def read(self, x: Tensor, y: Tensor | None = None, data: bool = True) -> Read:
        """x + y, the same in the weights' type where `data` is wanted, and its norm in the weights' type."""
        return norm_read(x, y, self.weight, self.bias, self.eps, data)
