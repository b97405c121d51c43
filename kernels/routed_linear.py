"""A linear map chosen a route at a time: the value and output projections of SwitchHead (arXiv 2312.07987, eq. 9-10).

Shape suffixes: R rows in, O rows out, Q routes, E matrices, D width in, F width out. Inside the Function everything
with Q stands in expert order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.grouped_matmul import arithmetic_dtype, outer_products, rows_times
from kernels.routes import cut, sort_routes
from kernels.rows import add_rows, row_dot, runs_triton, weighted, wide_dtype


def routed_linear(
    x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, n_out: int
) -> Tensor:
    """y_OF[o] = sum over routes q with out_row_Q[q] = o of weight_Q[q] * x_RD[in_row_Q[q]] @ w_EDF[expert_Q[q]].

    With t a token and h a head, SwitchHead's value has in = t, out = t*H+h, and its output in = t*H+h, out = t.
    Differentiable in x, w and weight; sums in at least float32, returned in x's dtype; equal bits on every run.

    Args:
        x_RD: rows. w_EDF: matrices in x's dtype. in_row_Q, out_row_Q, expert_Q: int64; routes in the order of both rows.
        weight_Q: any float dtype, multiplied in at least float32. n_out: rows of the result; those without a route are zero.
    """
    if runs_triton(x_RD):
        from kernels.routed_linear_triton import routed_linear_triton

        return routed_linear_triton(x_RD, w_EDF, in_row_Q, out_row_Q, expert_Q, weight_Q, n_out)
    return _RoutedLinear.apply(x_RD, w_EDF, in_row_Q, out_row_Q, expert_Q, weight_Q, n_out)


def routed_linear_reference(
    x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, n_out: int
) -> Tensor:
    """`routed_linear`, an expert at a time, differentiated by autograd."""
    y_OF = x_RD.new_zeros(n_out, w_EDF.shape[2])
    for expert in range(w_EDF.shape[0]):
        route_N = (expert_Q == expert).nonzero().flatten()
        answer_NF = weight_Q[route_N, None] * (x_RD[in_row_Q[route_N]] @ w_EDF[expert])
        y_OF = y_OF.index_add(0, out_row_Q[route_N], answer_NF.to(x_RD.dtype))
    return y_OF


class _RoutedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, n_out: int
    ) -> Tensor:
        order_Q, ends_E = sort_routes(expert_Q, w_EDF.shape[0])
        ctx.chunks = cut(ends_E)
        in_row_Q, out_row_Q, weight_Q = in_row_Q[order_Q], out_row_Q[order_Q], weight_Q[order_Q]
        ctx.save_for_backward(x_RD, w_EDF, order_Q, in_row_Q, out_row_Q, weight_Q)
        data_RD, wide = x_RD.to(arithmetic_dtype(x_RD)), wide_dtype(x_RD.dtype)
        y_OF = torch.zeros(n_out, w_EDF.shape[2], dtype=wide, device=x_RD.device)
        for chunk in ctx.chunks:
            answer_NF = rows_times(data_RD.index_select(0, in_row_Q[chunk.routes]), w_EDF[chunk.experts], chunk.sizes)
            add_rows(y_OF, out_row_Q[chunk.routes], weighted(answer_NF, weight_Q[chunk.routes], wide))
        return y_OF.to(x_RD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_OF: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, w_EDF, order_Q, in_row_Q, out_row_Q, weight_Q = ctx.saved_tensors
        needs_x, needs_w, _, _, _, needs_weight, _ = ctx.needs_input_grad
        dtype, wide = arithmetic_dtype(x_RD), wide_dtype(x_RD.dtype)
        data_RD, dy_OF = x_RD.to(dtype), dy_OF.to(dtype)
        dx_RD = torch.zeros_like(x_RD, dtype=wide, memory_format=torch.contiguous_format) if needs_x else None
        dw_EDF = torch.empty_like(w_EDF, memory_format=torch.contiguous_format) if needs_w else None
        dweight_Q = torch.empty_like(weight_Q) if needs_weight else None
        for chunk in ctx.chunks:
            in_row_N, weight_N = in_row_Q[chunk.routes], weight_Q[chunk.routes]
            rows_ND, dy_NF = data_RD.index_select(0, in_row_N), dy_OF.index_select(0, out_row_Q[chunk.routes])
            if dw_EDF is not None:
                outer_products(rows_ND, weighted(dy_NF, weight_N, dtype), chunk.sizes, out_EDF=dw_EDF[chunk.experts])
            if dx_RD is None and dweight_Q is None:
                continue
            # Without the weight this serves both: its dot product with the row is the weight's gradient.
            drows_ND = rows_times(dy_NF, w_EDF[chunk.experts].transpose(1, 2), chunk.sizes)
            if dweight_Q is not None:
                dweight_Q[order_Q[chunk.routes]] = row_dot(rows_ND, drows_ND).to(weight_Q.dtype)
            if dx_RD is not None:
                add_rows(dx_RD, in_row_N, weighted(drows_ND, weight_N, wide))
        return None if dx_RD is None else dx_RD.to(x_RD.dtype), dw_EDF, None, None, None, dweight_Q, None
