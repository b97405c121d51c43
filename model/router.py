"""Routers: which experts a token goes to, kept in the visit's record so that no recomputation chooses anew.

Shape suffixes: B sequences, T tokens a sequence, N = B*T tokens, M routers side by side (heads; 1 in a feed-forward layer),
E experts of one router, K chosen, D model width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernels.router import Routed, route
from kernels.wide_linear import wide_linear
from model.errors import ModelError

Record = dict[str, Any]
"""What one visit chose: names to choices, and what the exchange learnt. Filled when empty, obeyed when not."""


def recorded(record: Record, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The choices `record[name]`, or None where they are still to be made.

    Raises:
        ModelError: they have another shape than `shape`.
    """
    chosen: Tensor | None = record.get(name)
    if chosen is not None and chosen.shape != shape:
        raise ModelError(f"records: '{name}' has choices of shape {list(chosen.shape)}, this batch needs {list(shape)}")
    return chosen


class Routing(NamedTuple):
    """Choices and weights of a batch, and what the balance regulariser must know of it: a statistic summed over tokens, [B, M, C]."""

    expert_NMK: Tensor
    weight_NMK: Tensor
    statistic: Tensor


class Router(nn.Module):
    """Sigmoid scores without bias, the K best taken (arXiv 2405.16039 eq. 1-2, 5-6).

    `weight` is [M*E, D], and [R, M*E, D] once `own_weights` gave every visit of a layer its own. Logits are computed in float32
    at least: a tie in bfloat16 would let the order of summation choose.
    """

    weight: Tensor

    def __init__(self, name: str, d_model: int, n_experts: int, top_k: int, dropout: float, heads: int | None = None) -> None:
        super().__init__()
        self.name, self.heads, self.n_experts, self.top_k, self.dropout = name, heads, n_experts, top_k, dropout
        self.repeats: int | None = None
        self.weight = nn.Parameter(torch.empty((heads or 1) * n_experts, d_model))

    def own_weights(self, repeats: int) -> None:
        """Make every one of a layer's visits have weights of its own. They are new, without values."""
        self.repeats, self.weight = repeats, nn.Parameter(torch.empty(repeats, *self.weight.shape))

    def forward(self, x_BTD: Tensor, record: Record, repeat: int = 0) -> Routing:
        """Choose, or take the choices of `record[name]`: int64 [N, K], with heads [N, H, K].

        Raises:
            ModelError: the recorded choices do not fit this batch.
        """
        n_tokens, routers = x_BTD.shape[0] * x_BTD.shape[1], self.heads or 1
        logits_BTME = self._logits(x_BTD, self.weight if self.repeats is None else self.weight[repeat]).view(
            *x_BTD.shape[:2], routers, self.n_experts
        )
        kept = (n_tokens, self.top_k) if self.heads is None else (n_tokens, routers, self.top_k)
        chosen = recorded(record, self.name, kept)
        chosen_BTMK = None if chosen is None else chosen.view(*logits_BTME.shape[:3], self.top_k)
        routed = self._route(logits_BTME, chosen_BTMK, self._dropout_generator())
        record.setdefault(self.name, routed.expert.reshape(kept))
        record.setdefault("loads", {})[self.name] = routed.load
        return Routing(routed.expert.flatten(0, 1), routed.weight.flatten(0, 1), routed.statistic)

    def _logits(self, x_BTD: Tensor, weight: Tensor) -> Tensor:
        return wide_linear(x_BTD, weight)

    def _route(self, logits_BTME: Tensor, chosen: Tensor | None, generator: torch.Generator | None) -> Routed:
        return route(logits_BTME, self.top_k, chosen, self.dropout if self.training else 0.0, generator)

    def _dropout_generator(self) -> torch.Generator | None:
        # One number is drawn whether or not the choice is made here: a recomputation that takes its choices from the
        # record must leave the random state where the first pass left it, or later dropout masks would differ.
        if not (self.training and self.dropout):
            return None
        seed = int(torch.randint(2**62, ()))
        return torch.Generator(self.weight.device).manual_seed(seed)
