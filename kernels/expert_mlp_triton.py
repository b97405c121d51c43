"""The expert layer on an accelerator: sort, up with ReLU, down with the weight, sum by row; and the same backwards.

Two operators that torch.compile knows by shape alone. Nothing of size routes x d_model outlives either; kept for the backward are
the hidden activations [Q, F] (or nothing, with `recompute`) and the plan of the routes.

Shape suffixes: S rows, Q routes, E experts, D model width, F expert width. `hidden`, `dhidden` and `dot` are in expert order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.counting_sort import Plan, counting_sort
from kernels.expert_outer_products import expert_outer_products
from kernels.gather_matmul import Dot, gather_matmul
from kernels.sum_by_row import row_ends, sum_by_row
from kernels.tiles import tile_rows


def expert_mlp_triton(
    x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool = False
) -> Tensor:
    """`kernels.expert_mlp.expert_mlp` by Triton kernels."""
    y_SD, *_ = _forward(x_SD, row_Q, expert_Q, weight_Q, up_EDF, down_EFD, recompute)
    return y_SD


@torch.library.custom_op("mootron::expert_mlp", mutates_args=())
def _forward(
    x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, hidden (no rows with `recompute`), and the plan's three tensors."""
    plan = counting_sort(expert_Q, up_EDF.shape[0], tile_rows(x_SD.dtype))
    hidden_QF = _hidden(x_SD, row_Q, up_EDF, plan)
    part_QD = x_SD.new_empty(len(row_Q), x_SD.shape[1])
    gather_matmul(hidden_QF, down_EFD, plan, part_QD, to_Q=plan.order_Q, scale_Q=weight_Q[plan.order_Q])
    y_SD = sum_by_row(part_QD, row_ends(row_Q, len(x_SD)))
    return y_SD, hidden_QF[:0].clone() if recompute else hidden_QF, plan.order_Q, plan.ends_E, plan.tile_ends_E


@_forward.register_fake
def _(x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool) -> Any:
    n_experts, _, d_expert = up_EDF.shape
    hidden_QF = x_SD.new_empty(0 if recompute else row_Q.shape[0], d_expert)
    ends_E = row_Q.new_empty(n_experts)
    return x_SD.new_empty(x_SD.shape), hidden_QF, torch.empty_like(row_Q), ends_E, torch.empty_like(ends_E)


@torch.library.custom_op("mootron::expert_mlp_backward", mutates_args=())
def _backward(
    dy_SD: Tensor,
    x_SD: Tensor,
    row_Q: Tensor,
    weight_Q: Tensor,
    up_EDF: Tensor,
    down_EFD: Tensor,
    hidden_QF: Tensor,
    order_Q: Tensor,
    ends_E: Tensor,
    tile_ends_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, up and down."""
    plan = Plan(order_Q, ends_E, tile_ends_E, tile_rows(x_SD.dtype))
    from_Q, scale_Q = row_Q[order_Q], weight_Q[order_Q]
    if len(hidden_QF) < len(row_Q):
        hidden_QF = _hidden(x_SD, row_Q, up_EDF, plan)
    dhidden_QF, dot_Q = torch.empty_like(hidden_QF), torch.empty_like(weight_Q)
    dot = Dot(hidden_QF, None, dot_Q, gate=True)
    gather_matmul(dy_SD, down_EFD.transpose(1, 2), plan, dhidden_QF, from_Q=from_Q, scale_Q=scale_Q, dot=dot)
    dweight_Q = torch.empty_like(dot_Q).index_copy_(0, order_Q, dot_Q)
    dup_EDF = expert_outer_products(x_SD, dhidden_QF, plan, x_Q=from_Q)
    ddown_EFD = expert_outer_products(hidden_QF, dy_SD, plan, y_Q=from_Q, scale_Q=scale_Q)
    part_QD = x_SD.new_empty(len(row_Q), x_SD.shape[1])
    gather_matmul(dhidden_QF, up_EDF.transpose(1, 2), plan, part_QD, to_Q=order_Q)
    return sum_by_row(part_QD, row_ends(row_Q, len(x_SD))), dweight_Q, dup_EDF, ddown_EFD


@_backward.register_fake
def _(dy_SD: Tensor, x_SD: Tensor, row_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, *_: Tensor) -> Any:
    like = (x_SD, weight_Q, up_EDF, down_EFD)
    return tuple(tensor.new_empty(tensor.shape) for tensor in like)


def _hidden(x_SD: Tensor, row_Q: Tensor, up_EDF: Tensor, plan: Plan) -> Tensor:
    hidden_QF = x_SD.new_empty(len(row_Q), up_EDF.shape[2])
    gather_matmul(x_SD, up_EDF, plan, hidden_QF, from_Q=row_Q[plan.order_Q], relu=True)
    return hidden_QF


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x_SD, row_Q, _, weight_Q, up_EDF, down_EFD, _ = inputs
    ctx.save_for_backward(x_SD, row_Q, weight_Q, up_EDF, down_EFD, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy_SD: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_SD is None:
        return (None,) * 7
    dx_SD, dweight_Q, dup_EDF, ddown_EFD = _backward(dy_SD, *ctx.saved_tensors)
    return dx_SD, None, None, dweight_Q, dup_EDF, ddown_EFD, None


_forward.register_autograd(_differentiate, setup_context=_keep)
