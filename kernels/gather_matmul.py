"""Rows gathered by route, each times its expert's matrix, with what comes before the store done on chip.

    plain:  out[to_Q[q]] = scale_Q[q] * act(x[from_Q[q]] @ w[e(q)])
    dotted: u = x[from_Q[q]] @ w[e(q)];  dot_Q[q] = u . other[other_Q[q]];  out[to_Q[q]] = scale_Q[q] * gate(u)

q counts routes in expert order. act is ReLU or nothing; gate keeps u where `other` is positive, or everywhere.
The first is every forward product and the gradient of a layer's input; the second makes, in one pass over the incoming
gradient, both the gradient of the routing weights and that of the hidden layer.

Shape suffixes: Q routes, E experts, D width in, F width out, S rows of x, O rows of the result, M rows of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.counting_sort import Plan
from kernels.rows import whole_rows
from kernels.tiles import expert_of, routes_of, sum_type


class Dot(NamedTuple):
    """What `dotted` needs: rows [*, F], which of them a route takes, [Q] for the dot products, and whether `other` gates."""

    other: Tensor
    other_Q: Tensor | None
    dot_Q: Tensor
    gate: bool


def gather_matmul(
    x_SD: Tensor,
    w_EDF: Tensor,
    plan: Plan,
    out_OF: Tensor,
    *,
    from_Q: Tensor | None = None,
    to_Q: Tensor | None = None,
    scale_Q: Tensor | None = None,
    relu: bool = False,
    dot: Dot | None = None,
    tile_P: Tensor | None = None,
) -> None:
    """Write `out_OF` as the file says. Sums are float32, or float64 for float64 inputs.

    Args:
        x_SD: rows of any strides. w_EDF: in x's dtype, any strides (a transposed view is one).
        out_OF: written at the rows `to_Q`; others are left as they are.
        from_Q, to_Q: int64, in expert order; None: route q has row q.
        scale_Q: in expert order; None: 1.
        tile_P: the order that programs take the tiles in (`tile_order`); None: expert by expert. Changes no bit of the result.
    """
    n_routes, (n_experts, d_in, d_out) = plan.order_Q.shape[0], w_EDF.shape
    if n_routes == 0 or d_out == 0:
        return
    x_SD = whole_rows(x_SD)
    block_in, block_out = block_sizes(d_in, d_out, x_SD.dtype)
    columns = 1 if dot is not None else triton.cdiv(d_out, block_out)
    other = whole_rows(dot.other) if dot is not None else out_OF
    _gather_matmul[(plan.most_tiles * columns,)](
        x_SD,
        w_EDF,
        out_OF,
        from_Q,
        to_Q,
        scale_Q,
        other,
        dot.other_Q if dot is not None else None,
        dot.dot_Q if dot is not None else None,
        plan.ends_E,
        plan.tile_ends_E,
        tile_P,
        n_experts,
        d_in,
        d_out,
        columns,
        *x_SD.stride(),
        *w_EDF.stride(),
        *out_OF.stride(),
        *other.stride(),
        RELU=relu,
        DOT=dot is not None,
        GATE=dot is not None and dot.gate,
        EXPERTS=triton.next_power_of_2(max(n_experts, 2)),
        BLOCK_M=plan.tile_rows,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        SUM=sum_type(x_SD.dtype),
        num_warps=8 if plan.tile_rows >= 128 else 4,
        num_stages=3,
    )


def gather_matmul_reference(
    x_SD: Tensor,
    w_EDF: Tensor,
    plan: Plan,
    out_OF: Tensor,
    *,
    from_Q: Tensor | None = None,
    to_Q: Tensor | None = None,
    scale_Q: Tensor | None = None,
    relu: bool = False,
    dot: Dot | None = None,
) -> None:
    """`gather_matmul`, a route at a time."""
    expert_Q = torch.bucketize(torch.arange(plan.order_Q.shape[0], device=plan.ends_E.device), plan.ends_E, right=True)
    for q, expert in enumerate(expert_Q.tolist()):
        u_F = x_SD[q if from_Q is None else from_Q[q]] @ w_EDF[expert]
        if dot is not None:
            other_F = dot.other[q if dot.other_Q is None else dot.other_Q[q]]
            dot.dot_Q[q] = u_F @ other_F
            u_F = u_F * (other_F > 0) if dot.gate else u_F
        u_F = u_F.relu() if relu else u_F
        out_OF[q if to_Q is None else to_Q[q]] = u_F if scale_Q is None else scale_Q[q] * u_F


def block_sizes(d_in: int, d_out: int, dtype: torch.dtype) -> tuple[int, int]:
    """Columns taken at a time of the width in and of the width out: powers of two, at least 16 as tensor cores ask."""
    widest_in, widest_out = (64, 128) if dtype.itemsize <= 2 else (32, 64)
    return tuple(max(16, min(widest, triton.next_power_of_2(width))) for widest, width in ((widest_in, d_in), (widest_out, d_out)))


@triton.jit
def _gather_matmul(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    out_ptr: tl.tensor,
    from_ptr: tl.tensor,
    to_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    other_ptr: tl.tensor,
    other_row_ptr: tl.tensor,
    dot_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    tile_ends_ptr: tl.tensor,
    tile_ptr: tl.tensor,
    n_experts: tl.tensor,
    d_in: tl.tensor,
    d_out: tl.tensor,
    columns: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    w_expert: tl.tensor,
    w_in: tl.tensor,
    w_out: tl.tensor,
    out_row: tl.tensor,
    out_column: tl.tensor,
    other_row: tl.tensor,
    other_column: tl.tensor,
    RELU: tl.constexpr,
    DOT: tl.constexpr,
    GATE: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One tile of routes of one expert, by one block of columns; with DOT all columns, one block after the other."""
    tile = (tl.program_id(0) // columns).to(tl.int64)
    if tile_ptr is not None:
        tile = tl.load(tile_ptr + tile)
    expert = expert_of(tile, tile_ends_ptr, n_experts, EXPERTS)
    if expert >= n_experts:
        return
    place_M, end = routes_of(tile, expert, ends_ptr, tile_ends_ptr, BLOCK_M)
    there_M = place_M < end
    from_M = place_M if from_ptr is None else tl.load(from_ptr + place_M, mask=there_M, other=0)
    x_M = x_ptr + from_M * x_row
    w_first = w_ptr + expert.to(tl.int64) * w_expert
    dot_M = tl.zeros([BLOCK_M], dtype=SUM)
    if DOT:
        first_column, last_column = 0, d_out
    else:
        first_column = tl.program_id(0) % columns * BLOCK_OUT
        last_column = first_column + BLOCK_OUT
    for start in range(first_column, last_column, BLOCK_OUT):
        out_F = start + tl.arange(0, BLOCK_OUT)
        wanted_F = out_F < d_out
        u_MF = tl.zeros([BLOCK_M, BLOCK_OUT], dtype=SUM)
        for first in range(0, d_in, BLOCK_IN):
            in_D = first + tl.arange(0, BLOCK_IN)
            inside_D = in_D < d_in
            x_MD = tl.load(x_M[:, None] + in_D[None, :] * x_column, mask=there_M[:, None] & inside_D[None, :], other=0)
            w_DF = tl.load(w_first + in_D[:, None] * w_in + out_F[None, :] * w_out, mask=inside_D[:, None] & wanted_F[None, :], other=0)
            u_MF = tl.dot(x_MD, w_DF, u_MF, input_precision="ieee", out_dtype=SUM)
        rows = (place_M, there_M, to_ptr, scale_ptr, other_row_ptr)
        places = (out_ptr, out_row, out_column, other_ptr, other_row, other_column)
        # In halves with DOT: the other factor of a whole tile would not fit into the registers beside the sums.
        if DOT and BLOCK_OUT >= 32:
            left_MH, right_MH = tl.split(tl.permute(tl.reshape(u_MF, [BLOCK_M, 2, BLOCK_OUT // 2]), [0, 2, 1]))
            left_H = start + tl.arange(0, BLOCK_OUT // 2)
            dot_M += _finish(left_MH, left_H, d_out, rows, places, RELU, DOT, GATE, SUM)
            dot_M += _finish(right_MH, left_H + BLOCK_OUT // 2, d_out, rows, places, RELU, DOT, GATE, SUM)
        else:
            dot_M += _finish(u_MF, out_F, d_out, rows, places, RELU, DOT, GATE, SUM)
    if DOT:
        tl.store(dot_ptr + place_M, dot_M.to(dot_ptr.dtype.element_ty), mask=there_M)


@triton.jit
def _finish(
    u_MF: tl.tensor,
    out_F: tl.tensor,
    d_out: tl.tensor,
    rows: tl.tuple,
    places: tl.tuple,
    RELU: tl.constexpr,
    DOT: tl.constexpr,
    GATE: tl.constexpr,
    SUM: tl.constexpr,
) -> tl.tensor:
    """Store some columns of a tile after all that is done to them; their share of the dot products."""
    place_M, there_M, to_ptr, scale_ptr, other_row_ptr = rows
    out_ptr, out_row, out_column, other_ptr, other_row, other_column = places
    inside_MF = there_M[:, None] & (out_F < d_out)[None, :]
    dot_M = tl.zeros_like(place_M).to(SUM)
    if DOT:
        other_M = place_M if other_row_ptr is None else tl.load(other_row_ptr + place_M, mask=there_M, other=0)
        other_MF = tl.load(other_ptr + other_M[:, None] * other_row + out_F[None, :] * other_column, mask=inside_MF, other=0).to(SUM)
        dot_M += tl.sum(u_MF * other_MF, 1)
        if GATE:
            u_MF = tl.where(other_MF > 0, u_MF, 0)
    if RELU:
        u_MF = tl.where(u_MF < 0, 0, u_MF)  # a maximum would hide a NaN
    if scale_ptr is not None:
        u_MF *= tl.load(scale_ptr + place_M, mask=there_M, other=0).to(SUM)[:, None]
    to_M = place_M if to_ptr is None else tl.load(to_ptr + place_M, mask=there_M, other=0)
    tl.store(out_ptr + to_M[:, None] * out_row + out_F[None, :] * out_column, u_MF.to(out_ptr.dtype.element_ty), mask=inside_MF)
    return dot_M
