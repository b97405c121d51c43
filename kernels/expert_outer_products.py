"""The gradient of every expert's matrix: its routes' outer products, summed in one program a tile and so without atomics.

Shape suffixes: Q routes in expert order, E experts, D and F the two widths, S rows of x, O rows of y, N routes at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.counting_sort import Plan
from kernels.rows import whole_rows
from kernels.tiles import sum_type


def expert_outer_products(
    x_SD: Tensor,
    y_OF: Tensor,
    plan: Plan,
    *,
    x_Q: Tensor | None = None,
    y_Q: Tensor | None = None,
    scale_Q: Tensor | None = None,
    by_columns: bool = False,
) -> Tensor:
    """out_EDF[e] = sum over routes q of e of scale_Q[q] * x_SD[x_Q[q]] outer y_OF[y_Q[q]], in x's dtype; zeros without routes.

    Args:
        x_SD, y_OF: rows of one dtype, any strides. x_Q, y_Q: int64, in expert order; None: route q has row q.
        scale_Q: in expert order; None: 1. The scaled y is rounded to its dtype, as a product of tensor cores asks.
        by_columns: one block of columns of all experts after the other, so that those columns of the gathered rows stay in the
            second-level cache. Twice as wide blocks of the wider side then, as the other side is read again for each.
    """
    n_experts, d_in, d_out = plan.ends_E.shape[0], x_SD.shape[1], y_OF.shape[1]
    out_EDF = torch.empty(n_experts, d_in, d_out, dtype=x_SD.dtype, device=x_SD.device)
    if out_EDF.numel() == 0:
        return out_EDF
    x_SD, y_OF = whole_rows(x_SD), whole_rows(y_OF)
    widest = 128 if x_SD.dtype.itemsize <= 2 else 64
    wide_in, wide_out = (widest * 2 if by_columns and wider else widest for wider in (d_in > d_out, d_out > d_in))
    block_in, block_out = (max(16, min(w, triton.next_power_of_2(width))) for w, width in ((wide_in, d_in), (wide_out, d_out)))
    blocks = triton.cdiv(d_in, block_in) * triton.cdiv(d_out, block_out)
    grid = (n_experts, blocks) if by_columns else (blocks, n_experts)
    _expert_outer_products[grid](
        x_SD,
        y_OF,
        out_EDF,
        x_Q,
        y_Q,
        scale_Q,
        plan.ends_E,
        d_in,
        d_out,
        *x_SD.stride(),
        *y_OF.stride(),
        BY_COLUMNS=by_columns,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        BLOCK_N=64 if x_SD.dtype.itemsize <= 2 else 32,
        SUM=sum_type(x_SD.dtype),
        num_warps=8 if block_in * block_out >= 128 * 128 else 4,
        num_stages=3,
    )
    return out_EDF


def expert_outer_products_reference(
    x_SD: Tensor, y_OF: Tensor, plan: Plan, *, x_Q: Tensor | None = None, y_Q: Tensor | None = None, scale_Q: Tensor | None = None
) -> Tensor:
    """`expert_outer_products`, a route at a time."""
    out_EDF = x_SD.new_zeros(plan.ends_E.shape[0], x_SD.shape[1], y_OF.shape[1])
    expert_Q = torch.bucketize(torch.arange(plan.order_Q.shape[0], device=plan.ends_E.device), plan.ends_E, right=True)
    for q, expert in enumerate(expert_Q.tolist()):
        x_D, y_F = x_SD[q if x_Q is None else x_Q[q]], y_OF[q if y_Q is None else y_Q[q]]
        out_EDF[expert] += (1 if scale_Q is None else scale_Q[q]) * torch.outer(x_D, y_F)
    return out_EDF


@triton.jit
def _expert_outer_products(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    out_ptr: tl.tensor,
    x_row_ptr: tl.tensor,
    y_row_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    d_in: tl.tensor,
    d_out: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    y_row: tl.tensor,
    y_column: tl.tensor,
    BY_COLUMNS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One tile of one expert's matrix, over all of its routes in order."""
    if BY_COLUMNS:
        expert, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    else:
        expert, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns = tl.cdiv(d_out, BLOCK_OUT)
    in_D = block // columns * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out_F = block % columns * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside_D, inside_F = in_D < d_in, out_F < d_out
    begin = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    sum_DF = tl.zeros([BLOCK_IN, BLOCK_OUT], dtype=SUM)
    for first in range(begin, end, BLOCK_N):
        place_N = first + tl.arange(0, BLOCK_N)
        there_N = place_N < end
        x_N = place_N if x_row_ptr is None else tl.load(x_row_ptr + place_N, mask=there_N, other=0)
        y_N = place_N if y_row_ptr is None else tl.load(y_row_ptr + place_N, mask=there_N, other=0)
        x_DN = tl.load(x_ptr + in_D[:, None] * x_column + x_N[None, :] * x_row, mask=inside_D[:, None] & there_N[None, :], other=0)
        y_NF = tl.load(y_ptr + y_N[:, None] * y_row + out_F[None, :] * y_column, mask=there_N[:, None] & inside_F[None, :], other=0)
        if scale_ptr is not None:
            scale_N = tl.load(scale_ptr + place_N, mask=there_N, other=0).to(SUM)
            y_NF = (y_NF.to(SUM) * scale_N[:, None]).to(y_ptr.dtype.element_ty)
        sum_DF = tl.dot(x_DN, y_NF, sum_DF, input_precision="ieee", out_dtype=SUM)
    place = out_ptr + expert * d_in * d_out + in_D[:, None] * d_out + out_F[None, :]
    tl.store(place, sum_DF.to(out_ptr.dtype.element_ty), mask=inside_D[:, None] & inside_F[None, :])
