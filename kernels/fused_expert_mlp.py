"""Both products of an expert for a tile of its routes in one program: the tile between them, as wide as the expert, stays on chip.

    forward:  middle[q] = relu(x[from_Q[q]] @ first[e(q)])
              out[to_Q[q]] = scale_Q[q] * middle[q] @ second[e(q)]
    backward: u = x[from_Q[q]] @ first[e(q)];  dot_Q[q] = u . other[q]
              middle[q] = scale_Q[q] * u where other[q] is positive, and 0 elsewhere
              out[to_Q[q]] = middle[q] @ second[e(q)]

q counts routes in expert order. Backwards x is the gradient of the layer's result, `first` is down transposed, `second` up transposed,
`other` the hidden layer and `middle` its gradient.

Shape suffixes: Q routes, E experts, D model width, F expert width, S rows of x, M rows of a tile, P programs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.counting_sort import Plan
from kernels.gather_matmul import Dot, block_sizes, gather_matmul_reference
from kernels.rows import whole_rows
from kernels.tiles import expert_of, routes_of, sum_type

WIDEST_EXPERT = 128
"""Columns of the tile between the products: with more it would not stay in registers."""


def fused_expert_mlp(
    x_SD: Tensor,
    first_EDF: Tensor,
    second_EFD: Tensor,
    plan: Plan,
    middle_QF: Tensor,
    out_QD: Tensor,
    *,
    from_Q: Tensor,
    to_Q: Tensor,
    scale_Q: Tensor,
    dot: Dot | None = None,
    tile_P: Tensor | None = None,
) -> None:
    """Write `middle_QF` and `out_QD` as the file says; backward with `dot`, whose rows are in expert order.

    Args:
        x_SD: rows of any strides. first_EDF, second_EFD: in x's dtype, any strides; F at most `WIDEST_EXPERT`.
        middle_QF, out_QD: of one dtype, contiguous rows. from_Q, to_Q: int64, in expert order. scale_Q: in expert order.
        tile_P: the order that programs take the tiles in (`tile_order`); None: expert by expert.
    """
    n_routes, (n_experts, d_model, d_expert) = plan.order_Q.shape[0], first_EDF.shape
    if d_expert > WIDEST_EXPERT:
        raise ValueError(f"an expert of width {d_expert}: the fused form takes at most {WIDEST_EXPERT}")
    if n_routes == 0 or d_model == 0:
        return
    x_SD = whole_rows(x_SD)
    block_in, block_out = block_sizes(d_model, d_model, x_SD.dtype)
    _fused_expert_mlp[(plan.most_tiles,)](
        x_SD,
        first_EDF,
        second_EFD,
        middle_QF,
        out_QD,
        from_Q,
        to_Q,
        scale_Q,
        dot.other if dot is not None else None,
        dot.dot_Q if dot is not None else None,
        plan.ends_E,
        plan.tile_ends_E,
        tile_P,
        n_experts,
        d_model,
        d_expert,
        *x_SD.stride(),
        *first_EDF.stride(),
        *second_EFD.stride(),
        dot.other.stride(0) if dot is not None else d_expert,
        EXPERTS=triton.next_power_of_2(max(n_experts, 2)),
        BLOCK_M=plan.tile_rows,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        BLOCK_F=max(16, triton.next_power_of_2(d_expert)),
        SUM=sum_type(x_SD.dtype),
        num_warps=8 if plan.tile_rows >= 128 else 4,
        num_stages=3,
    )


def fused_expert_mlp_reference(
    x_SD: Tensor,
    first_EDF: Tensor,
    second_EFD: Tensor,
    plan: Plan,
    middle_QF: Tensor,
    out_QD: Tensor,
    *,
    from_Q: Tensor,
    to_Q: Tensor,
    scale_Q: Tensor,
    dot: Dot | None = None,
) -> None:
    """`fused_expert_mlp`, one product after the other, a route at a time."""
    before_Q, after_Q = (None, scale_Q) if dot is None else (scale_Q, None)
    gather_matmul_reference(x_SD, first_EDF, plan, middle_QF, from_Q=from_Q, scale_Q=before_Q, relu=dot is None, dot=dot)
    gather_matmul_reference(middle_QF, second_EFD, plan, out_QD, to_Q=to_Q, scale_Q=after_Q)


@triton.jit
def _fused_expert_mlp(
    x_ptr: tl.tensor,
    first_ptr: tl.tensor,
    second_ptr: tl.tensor,
    middle_ptr: tl.tensor,
    out_ptr: tl.tensor,
    from_ptr: tl.tensor,
    to_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    other_ptr: tl.tensor,
    dot_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    tile_ends_ptr: tl.tensor,
    tile_ptr: tl.tensor,
    n_experts: tl.tensor,
    d_model: tl.tensor,
    d_expert: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    first_expert: tl.tensor,
    first_in: tl.tensor,
    first_out: tl.tensor,
    second_expert: tl.tensor,
    second_in: tl.tensor,
    second_out: tl.tensor,
    other_row: tl.tensor,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_F: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One tile of routes of one expert, through both products."""
    tile = tl.program_id(0).to(tl.int64)
    if tile_ptr is not None:
        tile = tl.load(tile_ptr + tile)
    expert = expert_of(tile, tile_ends_ptr, n_experts, EXPERTS)
    if expert >= n_experts:
        return
    place_M, end = routes_of(tile, expert, ends_ptr, tile_ends_ptr, BLOCK_M)
    there_M = place_M < end
    x_M = x_ptr + tl.load(from_ptr + place_M, mask=there_M, other=0) * x_row
    first_F = first_ptr + expert.to(tl.int64) * first_expert + tl.arange(0, BLOCK_F) * first_out
    inside_F = tl.arange(0, BLOCK_F) < d_expert
    u_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=SUM)
    for start in range(0, d_model, BLOCK_IN):
        in_D = start + tl.arange(0, BLOCK_IN)
        inside_D = in_D < d_model
        x_MD = tl.load(x_M[:, None] + in_D[None, :] * x_column, mask=there_M[:, None] & inside_D[None, :], other=0)
        w_DF = tl.load(first_F[None, :] + in_D[:, None] * first_in, mask=inside_D[:, None] & inside_F[None, :], other=0)
        u_MF = tl.dot(x_MD, w_DF, u_MF, input_precision="ieee", out_dtype=SUM)
    scale_M = tl.load(scale_ptr + place_M, mask=there_M, other=0).to(SUM)
    inside_MF = there_M[:, None] & inside_F[None, :]
    if other_ptr is None:
        u_MF = tl.where(u_MF < 0, 0, u_MF)  # a maximum would hide a NaN
    else:
        other_MF = tl.load(other_ptr + place_M[:, None] * other_row + tl.arange(0, BLOCK_F)[None, :], mask=inside_MF, other=0).to(SUM)
        tl.store(dot_ptr + place_M, tl.sum(u_MF * other_MF, 1).to(dot_ptr.dtype.element_ty), mask=there_M)
        u_MF = tl.where(other_MF > 0, u_MF, 0) * scale_M[:, None]
    middle_MF = u_MF.to(x_ptr.dtype.element_ty)
    tl.store(middle_ptr + place_M[:, None] * d_expert + tl.arange(0, BLOCK_F)[None, :], middle_MF, mask=inside_MF)
    out_M = out_ptr + tl.load(to_ptr + place_M, mask=there_M, other=0) * d_model
    second_F = second_ptr + expert.to(tl.int64) * second_expert + tl.arange(0, BLOCK_F) * second_in
    for start in range(0, d_model, BLOCK_OUT):
        out_D = start + tl.arange(0, BLOCK_OUT)
        inside_D = out_D < d_model
        w_FD = tl.load(second_F[:, None] + out_D[None, :] * second_out, mask=inside_F[:, None] & inside_D[None, :], other=0)
        y_MD = tl.dot(middle_MF, w_FD, input_precision="ieee", out_dtype=SUM)
        if other_ptr is None:
            y_MD *= scale_M[:, None]
        # Evicted first: what is written here must not push rows that other tiles gather out of the cache.
        y_MD = y_MD.to(out_ptr.dtype.element_ty)
        tl.store(out_M[:, None] + out_D[None, :], y_MD, mask=there_M[:, None] & inside_D[None, :], eviction_policy="evict_first")
