"""A linear map whose results are float32 while its inputs are narrower: a router's logits.

A product of two bfloat16 numbers is exact in float32, so tensor cores that add in float32 give what a float32 product of the same
inputs gives, up to the order of the sum, at many times its speed.

Shape suffixes: N rows, D width in, F width out, P the width out in whole 16 bytes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.rows import runs_triton, wide_dtype

ALIGNED = 8
"""Entries of 16 bytes: rows of other lengths keep a matmul from loading whole vectors."""


def wide_linear(x: Tensor, w_FD: Tensor) -> Tensor:
    """x @ w_FD^T in at least float32. Differentiable in x and w.

    On an accelerator, of bfloat16 or float16: the backward rounds the results' gradient to the inputs' type for its two products (a
    relative error of 2^-9 an entry in bfloat16), adds in float32, and rounds once more to the inputs' type.

    Args:
        x: [..., D]. w_FD: in x's type.
    """
    if runs_triton(x) and x.dtype.itemsize == 2:
        y_NF = _forward(x.flatten(0, -2), w_FD)
        return y_NF.view(*x.shape[:-1], w_FD.shape[0])
    return wide_linear_reference(x, w_FD)


def wide_linear_reference(x: Tensor, w_FD: Tensor) -> Tensor:
    """`wide_linear` of inputs that are widened first."""
    wide = wide_dtype(x.dtype)
    return F.linear(x.to(wide), w_FD.to(wide))


@torch.library.custom_op("mootron::wide_linear", mutates_args=())
def _forward(x_ND: Tensor, w_FD: Tensor) -> Tensor:
    return _wide_product(x_ND, w_FD.t())


@_forward.register_fake
def _(x_ND: Tensor, w_FD: Tensor) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], w_FD.shape[0], dtype=torch.float32)


@torch.library.custom_op("mootron::wide_linear_backward", mutates_args=())
def _backward(dy_NF: Tensor, x_ND: Tensor, w_FD: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and w."""
    n_rows, n_out = dy_NF.shape
    padding = -n_out % ALIGNED
    dy_NP = x_ND.new_zeros(n_rows, n_out + padding)
    dy_NP[:, :n_out] = dy_NF
    dw_PD = _wide_product(dy_NP.t(), x_ND)
    return dy_NP @ F.pad(w_FD, (0, 0, 0, padding)), dw_PD[:n_out].to(w_FD.dtype)


@_backward.register_fake
def _(dy_NF: Tensor, x_ND: Tensor, w_FD: Tensor) -> Any:
    return x_ND.new_empty(x_ND.shape), w_FD.new_empty(w_FD.shape)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. The sum over all rows is cut into parts that torch may else add in the narrow type."""
    if a.is_cuda and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # torch has the mixed product for CUDA only


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy_NF: Tensor) -> tuple[Tensor, Tensor]:
    return _backward(dy_NF, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_keep)
