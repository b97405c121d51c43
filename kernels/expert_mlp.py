"""The expert layer: every row through its chosen two-layer ReLU experts, summed with the router's weights.

Shape suffixes: S rows, Q routes (row_Q[q] goes to expert_Q[q] with weight_Q[q]), E experts, D model width, F expert width.
Inside the Function everything with Q stands in expert order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.grouped_matmul import outer_products, rows_times, run_sizes
from kernels.routes import sort_routes
from kernels.segment_sum import segment_sum
from kernels.spans import span
from kernels.weighting import row_dot, weighted


def expert_mlp(
    x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool = False
) -> Tensor:
    """y_SD[s] = sum over routes q with row_Q[q] = s of weight_Q[q] * relu(x_SD[s] @ up_EDF[e]) @ down_EFD[e], e = expert_Q[q].

    Differentiable in x, weight, up and down (arXiv 2310.10837 eq. 16 without renormalisation). The sum over a row's
    routes is taken in at least float32 and returned in x's dtype. No atomics: equal bits on every run.

    Args:
        x_SD: rows. row_Q, expert_Q: int64, routes in any order. weight_Q: any float dtype, multiplied in at least float32.
        up_EDF, down_EFD: the experts, in x's dtype.
        recompute: keep no hidden activations [Q, F]; the backward makes them again from x.
    """
    return _ExpertMLP.apply(x_SD, row_Q, expert_Q, weight_Q, up_EDF, down_EFD, recompute)


def expert_mlp_reference(x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> Tensor:
    """`expert_mlp`, an expert at a time, differentiated by autograd."""
    y_SD = torch.zeros_like(x_SD)
    for expert in range(up_EDF.shape[0]):
        route_N = (expert_Q == expert).nonzero().flatten()
        row_N = row_Q[route_N]
        answer_ND = torch.relu(x_SD[row_N] @ up_EDF[expert]) @ down_EFD[expert]
        y_SD = y_SD.index_add(0, row_N, (weight_Q[route_N, None] * answer_ND).to(x_SD.dtype))
    return y_SD


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool
    ) -> Tensor:
        with span("experts"):
            order_Q, ends_E = sort_routes(expert_Q, up_EDF.shape[0])
            by_row = sort_routes(row_Q[order_Q], x_SD.shape[0])
            sizes = run_sizes(ends_E)
            row_Q, sorted_weight_Q = row_Q[order_Q], weight_Q[order_Q]
            hidden_QF = rows_times(x_SD[row_Q], up_EDF, sizes).relu_()
            answer_QD = rows_times(weighted(hidden_QF, sorted_weight_Q), down_EFD, sizes)
            ctx.sizes = sizes
            ctx.save_for_backward(x_SD, row_Q, order_Q, sorted_weight_Q, up_EDF, down_EFD, *by_row, None if recompute else hidden_QF)
            return segment_sum(answer_QD, *by_row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_SD: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, row_Q, order_Q, weight_Q, up_EDF, down_EFD, pick_Q, ends_S, hidden_QF = ctx.saved_tensors
        needs_x, _, _, needs_weight, needs_up, needs_down, _ = ctx.needs_input_grad
        dx_SD = dweight_Q = dup_EDF = ddown_EFD = None
        with span("experts"):
            if hidden_QF is None:
                hidden_QF = rows_times(x_SD[row_Q], up_EDF, ctx.sizes).relu_()
            dy_QD = dy_SD[row_Q]
            if needs_down:
                ddown_EFD = outer_products(weighted(hidden_QF, weight_Q), dy_QD, ctx.sizes)
            dhidden_QF = rows_times(dy_QD, down_EFD.transpose(1, 2), ctx.sizes)
            if needs_weight:
                dweight_Q = torch.empty_like(weight_Q)
                dweight_Q[order_Q] = row_dot(hidden_QF, dhidden_QF).to(weight_Q.dtype)
            dhidden_QF = weighted(dhidden_QF, weight_Q).masked_fill_(hidden_QF <= 0, 0)
            if needs_up:
                dup_EDF = outer_products(x_SD[row_Q], dhidden_QF, ctx.sizes)
            if needs_x:
                dx_SD = segment_sum(rows_times(dhidden_QF, up_EDF.transpose(1, 2), ctx.sizes), pick_Q, ends_S)
        return dx_SD, None, None, dweight_Q, dup_EDF, ddown_EFD, None
