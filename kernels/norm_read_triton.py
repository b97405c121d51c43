"""`kernels.norm_read.norm_read` in one pass over the stream each way.

Shape suffixes: N rows, D model width, P blocks of rows. Names: x the stream, y what is added to it, n its norm, d- a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.norm_read import Read

BLOCK_ROWS = 32
"""Rows whose shares of the gain's and bias's gradients are added by one program: one number, so that sums never change their order."""


def norm_read_triton(x: Tensor, y: Tensor | None, gain_D: Tensor, bias_D: Tensor, eps: float, data: bool = True) -> Read:
    """`norm_read`; where the stream already has the gain's type, `data` is the stream itself."""
    narrow = data and x.dtype != gain_D.dtype
    x, data_or_nothing, n = _NormRead.apply(x, y, gain_D, bias_D, eps, narrow)
    return Read(x, (data_or_nothing if narrow else x) if data else None, n)


class _NormRead(torch.autograd.Function):
    # Around the operators, which may not return their own input: without y the stream passes through, so that its gradient
    # comes in here and is added to the norm's while that is in registers.
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, gain_D: Tensor, bias_D: Tensor, eps: float, narrow: bool) -> tuple[Tensor, ...]:
        sum_x, data, n, mean_N, rstd_N = _forward(x.contiguous(), None if y is None else y.contiguous(), gain_D, bias_D, eps, narrow)
        x = x if y is None else sum_x
        ctx.save_for_backward(x, gain_D, mean_N, rstd_N)
        ctx.narrow, ctx.y_dtype, ctx.bias_dtype = narrow, None if y is None else y.dtype, bias_D.dtype
        return x, data, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor, ddata: Tensor, dn: Tensor) -> tuple[Tensor | None, ...]:
        x, gain_D, mean_N, rstd_N = ctx.saved_tensors
        y_dtype = None if ctx.y_dtype == x.dtype else ctx.y_dtype
        gradients = (dx.contiguous(), ddata.contiguous() if ctx.narrow else None, dn.contiguous())
        dx, dy, dgain_PD, dbias_PD = _backward(*gradients, x.contiguous(), gain_D, mean_N, rstd_N, y_dtype)
        dgain_D, dbias_D = dgain_PD.sum(0).to(gain_D.dtype), dbias_PD.sum(0).to(ctx.bias_dtype)
        return dx, dy if y_dtype else dx if ctx.y_dtype else None, dgain_D, dbias_D, None, None


@torch.library.custom_op("mootron::norm_read", mutates_args=())
def _forward(
    x: Tensor, y: Tensor | None, gain_D: Tensor, bias_D: Tensor, eps: float, narrow: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x + y (empty without y), the same in the gain's type (empty if not `narrow`), the norm, and each row's mean and 1 / deviation."""
    outputs = _empty_outputs(x, y, gain_D, narrow)
    n_rows, width = outputs[3].shape[0], x.shape[-1]
    if x.numel():
        block, warps = _block(width)
        _norm_read[(n_rows,)](
            x, y, gain_D, bias_D, *outputs, width, EPS=eps, ADD=y is not None, NARROW=narrow, BLOCK=block, num_warps=warps
        )
    return outputs


@_forward.register_fake
def _(x: Tensor, y: Tensor | None, gain_D: Tensor, bias_D: Tensor, eps: float, narrow: bool) -> Any:
    return _empty_outputs(x, y, gain_D, narrow)


def _empty_outputs(x: Tensor, y: Tensor | None, gain_D: Tensor, narrow: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sum_x = x.new_empty(0) if y is None else torch.empty_like(x)
    data = x.new_empty(x.shape if narrow else (0,), dtype=gain_D.dtype)
    mean_N = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return sum_x, data, x.new_empty(x.shape, dtype=gain_D.dtype), mean_N, torch.empty_like(mean_N)


@torch.library.custom_op("mootron::norm_read_backward", mutates_args=())
def _backward(
    dx: Tensor, ddata: Tensor | None, dn: Tensor, x: Tensor, gain_D: Tensor, mean_N: Tensor, rstd_N: Tensor, y_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of y (the same in y's type; empty if None), and a row a block of those of gain and bias."""
    outputs = _empty_gradients(x, y_dtype)
    n_rows, width = mean_N.shape[0], x.shape[-1]
    if x.numel():
        block, warps = _block(width)
        _norm_read_backward[(outputs[2].shape[0],)](
            dx,
            ddata,
            dn,
            x,
            gain_D,
            mean_N,
            rstd_N,
            *outputs,
            n_rows,
            width,
            NARROW=ddata is not None,
            ADDED=y_dtype is not None,
            ROWS=BLOCK_ROWS,
            BLOCK=block,
            num_warps=warps,
        )
    return outputs


@_backward.register_fake
def _(
    dx: Tensor, ddata: Tensor | None, dn: Tensor, x: Tensor, gain_D: Tensor, mean_N: Tensor, rstd_N: Tensor, y_dtype: torch.dtype | None
) -> Any:
    return _empty_gradients(x, y_dtype)


def _empty_gradients(x: Tensor, y_dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy = x.new_empty(0) if y_dtype is None else torch.empty_like(x, dtype=y_dtype)
    n_blocks = triton.cdiv(x.numel() // x.shape[-1], BLOCK_ROWS)
    dgain_PD = x.new_empty(n_blocks, x.shape[-1], dtype=torch.float32)
    return torch.empty_like(x), dy, dgain_PD, torch.empty_like(dgain_PD)


def _block(width: int) -> tuple[int, int]:
    """Columns of a program, a whole row padded to a power of two, and its warps: eight entries a thread."""
    block = triton.next_power_of_2(max(width, 16))
    return block, min(16, max(1, block // 256))


@triton.jit
def _norm_read(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    gain_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    data_ptr: tl.tensor,
    n_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    width: tl.tensor,
    EPS: tl.constexpr,
    ADD: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    x_D = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x_D += tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(sum_ptr + place, x_D.to(sum_ptr.dtype.element_ty), mask=inside)
    if NARROW:
        tl.store(data_ptr + place, x_D.to(data_ptr.dtype.element_ty), mask=inside)
    mean = tl.sum(x_D, 0) / width
    centred_D = tl.where(inside, x_D - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred_D * centred_D, 0) / width + EPS)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    gain_D = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
    bias_D = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(n_ptr + place, (centred_D * rstd * gain_D + bias_D).to(n_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_read_backward(
    dx_in_ptr: tl.tensor,
    ddata_ptr: tl.tensor,
    dn_ptr: tl.tensor,
    x_ptr: tl.tensor,
    gain_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    dgain_ptr: tl.tensor,
    dbias_ptr: tl.tensor,
    n_rows: tl.tensor,
    width: tl.tensor,
    NARROW: tl.constexpr,
    ADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of rows, one after the other."""
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    gain_D = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dgain_D = tl.zeros([BLOCK], dtype=tl.float32)
    dbias_D = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(part * ROWS, tl.minimum(part * ROWS + ROWS, n_rows)):
        place = row * width + column
        rstd = tl.load(rstd_ptr + row)
        x_D = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        standard_D = tl.where(inside, (x_D - tl.load(mean_ptr + row)) * rstd, 0.0)
        dn_D = tl.load(dn_ptr + place, mask=inside, other=0.0).to(tl.float32)
        dgain_D += dn_D * standard_D
        dbias_D += dn_D
        dstandard_D = dn_D * gain_D
        along_mean = tl.sum(dstandard_D, 0) / width
        along_x = tl.sum(dstandard_D * standard_D, 0) / width
        dx_D = tl.load(dx_in_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if NARROW:
            dx_D += tl.load(ddata_ptr + place, mask=inside, other=0.0).to(tl.float32)
        dx_D += (dstandard_D - along_mean - standard_D * along_x) * rstd
        tl.store(dx_ptr + place, dx_D.to(dx_ptr.dtype.element_ty), mask=inside)
        if ADDED:
            tl.store(dy_ptr + place, dx_D.to(dy_ptr.dtype.element_ty), mask=inside)
    tl.store(dgain_ptr + part * width + column, dgain_D, mask=inside)
    tl.store(dbias_ptr + part * width + column, dbias_D, mask=inside)
