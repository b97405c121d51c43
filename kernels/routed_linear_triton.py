"""A linear map chosen a route at a time, on an accelerator. Shape suffixes: R rows in, O rows out, Q routes, E matrices, D, F widths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.counting_sort import Plan, counting_sort
from kernels.expert_outer_products import expert_outer_products
from kernels.gather_matmul import Dot, gather_matmul
from kernels.sum_by_row import row_ends, sum_by_row
from kernels.tiles import tile_rows


@torch.library.custom_op("mootron::routed_linear", mutates_args=())
def _forward(
    x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, n_out: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y and the plan's three tensors."""
    plan = counting_sort(expert_Q, w_EDF.shape[0], tile_rows(x_RD.dtype))
    part_QF = x_RD.new_empty(len(expert_Q), w_EDF.shape[2])
    order_Q = plan.order_Q
    gather_matmul(x_RD, w_EDF, plan, part_QF, from_Q=in_row_Q[order_Q], to_Q=order_Q, scale_Q=weight_Q[order_Q])
    return sum_by_row(part_QF, row_ends(out_row_Q, n_out)), *plan[:3]


@_forward.register_fake
def _(x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, n_out: int) -> Any:
    ends_E = expert_Q.new_empty(w_EDF.shape[0])
    return x_RD.new_empty(n_out, w_EDF.shape[2]), torch.empty_like(expert_Q), ends_E, torch.empty_like(ends_E)


@torch.library.custom_op("mootron::routed_linear_backward", mutates_args=())
def _backward(
    dy_OF: Tensor,
    x_RD: Tensor,
    w_EDF: Tensor,
    in_row_Q: Tensor,
    out_row_Q: Tensor,
    weight_Q: Tensor,
    order_Q: Tensor,
    ends_E: Tensor,
    tile_ends_E: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w and weight; of those that nobody needs, a tensor without entries."""
    needs_x, needs_w, needs_weight = needs
    plan = Plan(order_Q, ends_E, tile_ends_E, tile_rows(x_RD.dtype))
    in_Q, out_Q, scale_Q = in_row_Q[order_Q], out_row_Q[order_Q], weight_Q[order_Q]
    dx_RD, dw_EDF, dweight_Q = (tensor.new_empty(0) for tensor in (x_RD, w_EDF, weight_Q))
    if needs_x or needs_weight:
        part_QD, dot_Q = x_RD.new_empty(len(order_Q), x_RD.shape[1]), torch.empty_like(weight_Q)
        # Without the weight this serves both: its dot product with the row is the weight's gradient.
        dot = Dot(x_RD, in_Q, dot_Q, gate=False)
        gather_matmul(dy_OF, w_EDF.transpose(1, 2), plan, part_QD, from_Q=out_Q, to_Q=order_Q, scale_Q=scale_Q, dot=dot)
        dx_RD = sum_by_row(part_QD, row_ends(in_row_Q, len(x_RD))) if needs_x else dx_RD
        dweight_Q = torch.empty_like(dot_Q).index_copy_(0, order_Q, dot_Q) if needs_weight else dweight_Q
    if needs_w:
        dw_EDF = expert_outer_products(x_RD, dy_OF, plan, x_Q=in_Q, y_Q=out_Q, scale_Q=scale_Q)
    return dx_RD, dw_EDF, dweight_Q


@_backward.register_fake
def _(dy_OF: Tensor, x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, weight_Q: Tensor, *rest: Any) -> Any:
    return tuple(tensor.new_empty(tensor.shape if there else 0) for tensor, there in zip((x_RD, w_EDF, weight_Q), rest[-1], strict=True))


def routed_linear_triton(
    x_RD: Tensor, w_EDF: Tensor, in_row_Q: Tensor, out_row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, n_out: int
) -> Tensor:
    """`kernels.routed_linear.routed_linear` by Triton kernels."""
    y_OF, *_ = _forward(x_RD, w_EDF, in_row_Q, out_row_Q, expert_Q, weight_Q, n_out)
    return y_OF


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x_RD, w_EDF, in_row_Q, out_row_Q, _, weight_Q, _ = inputs
    ctx.save_for_backward(x_RD, w_EDF, in_row_Q, out_row_Q, weight_Q, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy_OF: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_OF is None:
        return (None,) * 7
    needs = [ctx.needs_input_grad[place] for place in (0, 1, 5)]
    made = _backward(dy_OF, *ctx.saved_tensors, needs)
    dx_RD, dw_EDF, dweight_Q = (gradient if needed else None for gradient, needed in zip(made, needs, strict=True))
    return dx_RD, dw_EDF, None, None, None, dweight_Q, None


_forward.register_autograd(_differentiate, setup_context=_keep)
