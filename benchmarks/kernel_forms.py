"""The expert layer beside other forms of equal work, and the loss: forward and backward on the same random routes.

Dense: a layer with the multiply-accumulates of the matrices a token takes, all in one. grouped_mm: torch's, with a sort, gathers and
an index_add around it. Shape suffixes: T tokens, K experts of a token, Q = T K routes, E experts, D, F widths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Form
from kernels.expert_mlp import expert_mlp
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


class Shape(NamedTuple):
    """Of an expert layer: model width, expert width, experts, experts a token."""

    width: int
    narrow: int
    n_experts: int
    top_k: int


class Layer(NamedTuple):
    """An expert layer's tensors; all but the experts chosen and `dy_TD` want gradients, which forms give in the order of `leaves`."""

    shape: Shape
    x_TD: Tensor
    expert_TK: Tensor
    weight_TK: Tensor
    up_EDF: Tensor
    down_EFD: Tensor
    dy_TD: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x_TD, self.weight_TK, self.up_EDF, self.down_EFD]


def draw_layer(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Layer:
    """Random weights and routes; a token's experts are distinct, all equally likely. Routing weights are float32."""
    draw = Leaves(dtype, device)
    x_TD, dy_TD = draw(tokens, shape.width), draw(tokens, shape.width).detach()
    up_EDF, down_EFD = draw(shape.n_experts, shape.width, shape.narrow), draw(shape.n_experts, shape.narrow, shape.width)
    weight_TK = torch.rand(tokens, shape.top_k, device=device).requires_grad_()
    return Layer(shape, x_TD, choose(tokens, shape.n_experts, shape.top_k, device), weight_TK, up_EDF, down_EFD, dy_TD)


def layer_forms(layer: Layer) -> dict[str, Form]:
    """The layer's forward and backward by our kernels, by dense layers and by grouped_mm."""
    shape, x_TD = layer.shape, layer.x_TD
    row_Q = torch.arange(len(x_TD), device=x_TD.device).repeat_interleave(shape.top_k)
    expert_Q = layer.expert_TK.flatten()

    def ours() -> Tensor:
        return expert_mlp(x_TD, row_Q, expert_Q, layer.weight_TK.flatten(), layer.up_EDF, layer.down_EFD)

    def grouped() -> Tensor:
        order_Q, ends_E = by_expert(expert_Q, shape.n_experts)
        hidden_QF = torch.relu(F.grouped_mm(x_TD[row_Q[order_Q]], layer.up_EDF, offs=ends_E))
        answer_QD = F.grouped_mm(hidden_QF, layer.down_EFD, offs=ends_E) * layer.weight_TK.flatten()[order_Q, None].to(x_TD.dtype)
        return torch.zeros_like(x_TD).index_add(0, row_Q[order_Q], answer_QD)

    return {
        "ours": both_ways(ours, layer.leaves, layer.dy_TD),
        "dense": both_ways(*dense_layer(layer), layer.dy_TD),
        "grouped_mm": both_ways(grouped, layer.leaves, layer.dy_TD),
    }


def dense_layer(layer: Layer) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A forward pass with the multiply-accumulates of the experts that a token takes, in two matrices, and its leaves."""
    shape, x_TD = layer.shape, layer.x_TD
    draw = Leaves(x_TD.dtype, str(x_TD.device))
    wide_in, wide_out = draw(shape.top_k * shape.narrow, shape.width), draw(shape.width, shape.top_k * shape.narrow)
    return lambda: F.linear(torch.relu(F.linear(x_TD, wide_in)), wide_out), [x_TD, wide_in, wide_out]


def loss_forms(width: int, vocab_size: int, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """The head's cross-entropy without logits, and by torch's operators, which keep them all."""
    draw = Leaves(dtype, device)
    leaves = x_TD, w_VD, b_V = [draw(tokens, width), draw(vocab_size, width), draw(vocab_size)]
    target_T, one = torch.randint(vocab_size, (tokens,), device=device), torch.ones((), device=device)
    return {
        "ours": both_ways(lambda: linear_cross_entropy(x_TD, w_VD, b_V, target_T), leaves, one),
        "dense": both_ways(lambda: linear_cross_entropy_reference(x_TD, w_VD, b_V, target_T), leaves, one),
    }


class Leaves:
    """Draws tensors that want a gradient."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self._dtype, self._device = dtype, device

    def __call__(self, *shape: int) -> Tensor:
        return (torch.randn(*shape, device=self._device) / shape[-1] ** 0.5).to(self._dtype).requires_grad_()


def both_ways(forward: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor) -> Form:
    """Forward, then the gradients of `leaves`."""
    return lambda: torch.autograd.grad(forward(), leaves, cotangent)


def choose(tokens: int, n_experts: int, top_k: int, device: str) -> Tensor:
    """Distinct experts of every token, int64 [T, K], all equally likely."""
    return torch.rand(tokens, n_experts, device=device).topk(top_k).indices


def by_expert(expert_Q: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Routes in expert order and where each expert's end, as grouped_mm wants them."""
    sorted_Q, order_Q = expert_Q.sort(stable=True)
    return order_Q, torch.searchsorted(sorted_Q, torch.arange(n_experts, device=expert_Q.device), right=True).int()
