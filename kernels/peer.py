"""PEER: every token through the one-neuron experts that it picked (arXiv 2407.04153, Algorithm 1 after the retrieval).

Shape suffixes: T tokens, R experts picked a token (heads times k), N experts, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.rows import runs_triton, wide_dtype
from kernels.segment_sums import segment_sums
from kernels.spans import span
from kernels.table_rows import gather_dot, gather_sum


class Activation(NamedTuple):
    """A function, and the gradient before it from the gradient behind it and its argument."""

    value: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS = {
    "relu": Activation(torch.relu, lambda dy, x: torch.ops.aten.threshold_backward(dy, x, 0)),
    "gelu": Activation(torch.nn.functional.gelu, lambda dy, x: torch.ops.aten.gelu_backward(dy, x)),
}


def peer(x_TD: Tensor, index_TR: Tensor, weight_TR: Tensor, down_ND: Tensor, up_ND: Tensor, activation: str = "gelu") -> Tensor:
    """y_TD[t] = sum over r of weight_TR[t, r] * act(down_ND[i] . x_TD[t]) * up_ND[i], i = index_TR[t, r], in x's dtype.

    Differentiable in x, weight, down and up; dot products and sums in float32 at least; equal bits on every run. Kept for the
    backward, beside the arguments, are the dot products [T, R]; no tensor of size T x R x D is made. The tables' gradients are
    dense and float32 at least: autograd rounds them to a table's `grad_dtype`, its own type unless one sets it.

    Args:
        x_TD, down_ND, up_ND: of one dtype, any strides. index_TR: int64 in 0..N-1; an expert may be picked more than once.
        weight_TR: gate weights, any float dtype, multiplied in at least float32.
        activation: "relu" or "gelu" (the exact one, by the error function).

    Raises:
        ValueError: there is no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation '{activation}' is none of {', '.join(ACTIVATIONS)}")
    with span("experts"):
        return _forward(x_TD, index_TR, weight_TR, down_ND, up_ND, activation)[0]


def peer_reference(x_TD: Tensor, index_TR: Tensor, weight_TR: Tensor, down_ND: Tensor, up_ND: Tensor, activation: str = "gelu") -> Tensor:
    """`peer` with all experts gathered, differentiated by autograd."""
    dot_TR = torch.einsum("td,trd->tr", x_TD, down_ND[index_TR])
    return torch.einsum("tr,trd->td", weight_TR * ACTIVATIONS[activation].value(dot_TR), up_ND[index_TR])


@torch.library.custom_op("mootron::peer", mutates_args=())
def _forward(x_TD: Tensor, index_TR: Tensor, weight_TR: Tensor, down_ND: Tensor, up_ND: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """y and the dot products."""
    if runs_triton(x_TD):
        from kernels.peer_triton import peer_triton

        return peer_triton(x_TD, index_TR, weight_TR, down_ND, up_ND, activation)
    dot_TR = gather_dot(x_TD, down_ND, index_TR)
    return gather_sum(weight_TR * ACTIVATIONS[activation].value(dot_TR), up_ND, index_TR), dot_TR


@_forward.register_fake
def _(x_TD: Tensor, index_TR: Tensor, weight_TR: Tensor, down_ND: Tensor, up_ND: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(index_TR.shape, dtype=wide_dtype(x_TD.dtype))


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy_TD: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy_TD is None:
        return (None,) * 6
    x_TD, index_TR, weight_TR, down_ND, up_ND, dot_TR = ctx.saved_tensors
    activation, wide_TR = ACTIVATIONS[ctx.activation], weight_TR.to(dot_TR.dtype)
    with span("experts"):
        active_TR = activation.value(dot_TR)
        dactive_TR = gather_dot(dy_TD, up_ND, index_TR)
        ddot_TR = activation.backward(wide_TR * dactive_TR, dot_TR)
        ddown_ND, dup_ND = None, None
        if any(ctx.needs_input_grad[3:5]):
            ddown_ND, dup_ND = segment_sums(index_TR, len(down_ND), [ddot_TR, wide_TR * active_TR], [x_TD, dy_TD])
        dweight_TR = (active_TR * dactive_TR).to(weight_TR.dtype)
        return gather_sum(ddot_TR, down_ND, index_TR), None, dweight_TR, ddown_ND, dup_ND, None


_forward.register_autograd(_differentiate, setup_context=_keep)
