"""What a half-visit reads of the residual stream: the stream itself in the weights' type, and its layer norm.

Peri-layernorm (arXiv 2405.16039, section 2.4) reads the stream twice: experts and values take it as it is, queries, keys and
routers normalised. On an accelerator both are written in one pass over it, which may also add a half-visit's result to it first.

Shape suffixes: D model width; any leading shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from kernels.rows import runs_triton, wide_dtype


class Read(NamedTuple):
    """The stream `x`, in its own type; `data`, the same in the weights' type (None where not asked for); `n`, its norm in that type."""

    x: Tensor
    data: Tensor | None
    n: Tensor


def norm_read(x: Tensor, y: Tensor | None, gain_D: Tensor, bias_D: Tensor, eps: float, data: bool = True) -> Read:
    """x + y, that in the gain's type, and (x + y - mean) / sqrt(variance + eps) * gain + bias, computed in at least float32.

    Differentiable in x, y, gain and bias. On an accelerator the gradients of all that is given add up in float32 in one pass, and
    those of gain and bias by fixed blocks of rows: equal bits on every run.

    Args:
        x: the stream [..., D], of a type at least as wide as y's and the gain's.
        y: [..., D], added first; None: nothing is.
        gain_D, bias_D: of one type, that of `data` and `n`.
        eps: added to the variance.
        data: whether the stream is wanted in the gain's type.
    """
    if runs_triton(x):
        from kernels.norm_read_triton import norm_read_triton

        return norm_read_triton(x, y, gain_D, bias_D, eps, data)
    return norm_read_reference(x, y, gain_D, bias_D, eps, data)


def norm_read_reference(x: Tensor, y: Tensor | None, gain_D: Tensor, bias_D: Tensor, eps: float, data: bool = True) -> Read:
    """`norm_read` by torch's operators, which read and write the stream once each."""
    x = x if y is None else x + y
    return Read(x, x.to(gain_D.dtype) if data else None, wide_layer_norm(x, gain_D, bias_D, eps).to(gain_D.dtype))


def wide_layer_norm(x: Tensor, gain_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension, computed and returned in at least float32, whatever the weights are."""
    wide = wide_dtype(gain_D.dtype)
    return F.layer_norm(x.to(wide), gain_D.shape, gain_D.to(wide), bias_D.to(wide), eps)
