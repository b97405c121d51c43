"""The expert layer on an accelerator: sort, up with ReLU, down with the weight, sum by row; and the same backwards.

Two operators that torch.compile knows by shape alone. Nothing of size routes x d_model outlives either; kept for the backward are
the hidden activations [Q, F] (or nothing, with `recompute`) and the plan of the routes.

Shape suffixes: S rows, Q routes, E experts, D model width, F expert width, P programs. `hidden`, `dhidden` and `dot` are in expert order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.counting_sort import Plan, counting_sort
from kernels.expert_outer_products import expert_outer_products
from kernels.fused_expert_mlp import fused_expert_mlp
from kernels.gather_matmul import Dot, gather_matmul
from kernels.sum_by_row import row_ends, sum_by_row
from kernels.tile_order import tile_order, windows_of
from kernels.tiles import tile_rows
from kernels.two_kernel_expert_mlp import two_kernel_expert_mlp


class Form(NamedTuple):
    """Which kernel does both products, and whether gathered rows are made to come from the second-level cache."""

    products: Callable[..., None]
    windowed: bool


FORMS = {
    "two-kernel": Form(two_kernel_expert_mlp, windowed=False),
    "two-kernel windowed": Form(two_kernel_expert_mlp, windowed=True),
    "fused": Form(fused_expert_mlp, windowed=False),
    "fused windowed": Form(fused_expert_mlp, windowed=True),
}
CHOSEN = "two-kernel"
"""The form that runs: the others wait for a device, on which `bench forms` shows what each takes."""


def expert_mlp_triton(
    x_SD: Tensor,
    row_Q: Tensor,
    expert_Q: Tensor,
    weight_Q: Tensor,
    up_EDF: Tensor,
    down_EFD: Tensor,
    recompute: bool = False,
    form: str = CHOSEN,
) -> Tensor:
    """`kernels.expert_mlp.expert_mlp` by Triton kernels; `form` is one of `FORMS`."""
    y_SD, *_ = _forward(x_SD, row_Q, expert_Q, weight_Q, up_EDF, down_EFD, recompute, form)
    return y_SD


@torch.library.custom_op("mootron::expert_mlp", mutates_args=())
def _forward(
    x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool, form: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, hidden (no rows with `recompute`), and the plan's three tensors."""
    plan = counting_sort(expert_Q, up_EDF.shape[0], tile_rows(x_SD.dtype))
    hidden_QF, part_QD = (x_SD.new_empty(len(row_Q), width) for width in (up_EDF.shape[2], x_SD.shape[1]))
    routes = _routes(x_SD, row_Q, weight_Q, plan, form)
    FORMS[form].products(x_SD, up_EDF, down_EFD, plan, hidden_QF, part_QD, **routes)
    y_SD = sum_by_row(part_QD, row_ends(row_Q, len(x_SD)))
    return y_SD, hidden_QF[:0].clone() if recompute else hidden_QF, plan.order_Q, plan.ends_E, plan.tile_ends_E


@_forward.register_fake
def _(x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool, form: str) -> Any:
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
    form: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, up and down; of those that nobody needs, a tensor without entries."""
    needs_x, needs_weight, needs_up, needs_down = needs
    plan, by_columns = Plan(order_Q, ends_E, tile_ends_E, tile_rows(x_SD.dtype)), FORMS[form].windowed
    routes = _routes(dy_SD, row_Q, weight_Q, plan, form)
    from_Q, scale_Q, tile_P = routes["from_Q"], routes["scale_Q"], routes["tile_P"]
    if len(hidden_QF) < len(row_Q):
        hidden_QF = x_SD.new_empty(len(row_Q), up_EDF.shape[2])
        gather_matmul(x_SD, up_EDF, plan, hidden_QF, from_Q=from_Q, relu=True, tile_P=tile_P)
    dhidden_QF, dot_Q = torch.empty_like(hidden_QF), torch.empty_like(weight_Q)
    dot, down_EDF = Dot(hidden_QF, None, dot_Q, gate=True), down_EFD.transpose(1, 2)
    dx_SD, dweight_Q, dup_EDF, ddown_EFD = (tensor.new_empty(0) for tensor in (x_SD, weight_Q, up_EDF, down_EFD))
    if needs_x:
        part_QD = x_SD.new_empty(len(row_Q), x_SD.shape[1])
        FORMS[form].products(dy_SD, down_EDF, up_EDF.transpose(1, 2), plan, dhidden_QF, part_QD, dot=dot, **routes)
        dx_SD = sum_by_row(part_QD, row_ends(row_Q, len(x_SD)))
    else:
        gather_matmul(dy_SD, down_EDF, plan, dhidden_QF, from_Q=from_Q, scale_Q=scale_Q, dot=dot, tile_P=tile_P)
    if needs_up:
        dup_EDF = expert_outer_products(x_SD, dhidden_QF, plan, x_Q=from_Q, by_columns=by_columns)
    if needs_down:
        ddown_EFD = expert_outer_products(hidden_QF, dy_SD, plan, y_Q=from_Q, scale_Q=scale_Q, by_columns=by_columns)
    if needs_weight:
        dweight_Q = torch.empty_like(dot_Q).index_copy_(0, order_Q, dot_Q)
    return dx_SD, dweight_Q, dup_EDF, ddown_EFD


@_backward.register_fake
def _(dy_SD: Tensor, x_SD: Tensor, row_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, *rest: Any) -> Any:
    like = (x_SD, weight_Q, up_EDF, down_EFD)
    return tuple(tensor.new_empty(tensor.shape if needed else 0) for tensor, needed in zip(like, rest[-1], strict=True))


def _routes(gathered_SD: Tensor, row_Q: Tensor, weight_Q: Tensor, plan: Plan, form: str) -> dict[str, Tensor | None]:
    """From where and to where the products take their rows, with what weight, and in what order tiles come."""
    windows = windows_of(gathered_SD, plan) if FORMS[form].windowed else 1
    tile_P = tile_order(plan, windows) if windows > 1 else None
    return {"from_Q": row_Q[plan.order_Q], "to_Q": plan.order_Q, "scale_Q": weight_Q[plan.order_Q], "tile_P": tile_P}


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x_SD, row_Q, _, weight_Q, up_EDF, down_EFD, _, ctx.form = inputs
    ctx.save_for_backward(x_SD, row_Q, weight_Q, up_EDF, down_EFD, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy_SD: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_SD is None:
        return (None,) * 8
    needs = [ctx.needs_input_grad[place] for place in (0, 3, 4, 5)]
    made = _backward(dy_SD, *ctx.saved_tensors, ctx.form, needs)
    dx_SD, dweight_Q, dup_EDF, ddown_EFD = (gradient if needed else None for gradient, needed in zip(made, needs, strict=True))
    return dx_SD, None, None, dweight_Q, dup_EDF, ddown_EFD, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
