"""A linear map chosen a route at a time: the value and output projections of SwitchHead (arXiv 2312.07987, eq. 9-10).

Shape suffixes: R rows in, O rows out, Q routes, E matrices, D width in, F width out. Inside the Function everything
with Q stands in expert order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.grouped_matmul import outer_products, rows_times, run_sizes
from kernels.routes import sort_routes
from kernels.segment_sum import segment_sum
from kernels.weighting import row_dot, weighted


def routed_linear(
    x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, n_out: int
) -> Tensor:
    """y_OF[o] = sum over routes q with out_row_Q[q] = o of weight_Q[q] * x_RD[in_row_Q[q]] @ w_EDF[expert_Q[q]].

    With t a token and h a head, SwitchHead's value has in = t, out = t*H+h, and its output in = t*H+h, out = t.
    Differentiable in x, w and weight; sums in at least float32, returned in x's dtype; equal bits on every run.

    Args:
        x_RD: rows. w_EDF: matrices in x's dtype. in_row_Q, out_row_Q, expert_Q: int64, routes in any order.
        weight_Q: any float dtype, multiplied in at least float32. n_out: rows of the result; those without a route are zero.
    """
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
        ctx.sizes, ctx.n_in = run_sizes(ends_E), x_RD.shape[0]
        in_row_Q, out_row_Q, weight_Q = in_row_Q[order_Q], out_row_Q[order_Q], weight_Q[order_Q]
        answer_QF = rows_times(x_RD[in_row_Q], w_EDF, ctx.sizes)
        ctx.save_for_backward(x_RD, w_EDF, order_Q, in_row_Q, out_row_Q, weight_Q, answer_QF)
        return segment_sum(weighted(answer_QF, weight_Q), *sort_routes(out_row_Q, n_out))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_OF: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, w_EDF, order_Q, in_row_Q, out_row_Q, weight_Q, answer_QF = ctx.saved_tensors
        needs_x, needs_w, _, _, _, needs_weight, _ = ctx.needs_input_grad
        dx_RD = dw_EDF = dweight_Q = None
        dy_QF = dy_OF[out_row_Q]
        if needs_weight:
            dweight_Q = torch.empty_like(weight_Q)
            dweight_Q[order_Q] = row_dot(answer_QF, dy_QF).to(weight_Q.dtype)
        danswer_QF = weighted(dy_QF, weight_Q)
        if needs_w:
            dw_EDF = outer_products(x_RD[in_row_Q], danswer_QF, ctx.sizes)
        if needs_x:
            dx_QD = rows_times(danswer_QF, w_EDF.transpose(1, 2), ctx.sizes)
            dx_RD = segment_sum(dx_QD, *sort_routes(in_row_Q, ctx.n_in))
        return dx_RD, dw_EDF, None, None, None, dweight_Q, None
