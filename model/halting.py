"""Halting: which tokens take a repeat of the group, what keys and values are read from, and what the head reads.

One pass over the group is one step of the recurrence. Before it a gate reads each token's state and decides; tokens that
halted are left out of it (`model.skipping`), and the others attend to what they were. Every pass is made whether or not any
token is left, so ranks that exchange tokens agree without asking.

Shape suffixes: B sequences, T tokens, N tokens in a pass, D model width.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from model.attention import Statistics
from model.halting_config import Computed
from model.rotary import Positions
from model.skipping import Rows, Skipping
from model.visit import Visit


class Left(NamedTuple):
    """What a batch leaves with.

    `ponder_B`: the weighted halting loss of every sequence, a mean over its tokens (scope `sequence`). `n_tokens`: tokens of a
    sequence that every visit computed, None where visits differ. `computed`: one entry a visit.
    """

    x: Tensor
    ponder_B: Tensor
    n_tokens: int | None
    computed: list[Computed]


class Walk(Protocol):
    """A batch on its way through the visits: `enter` before each of them, `leave` after the last."""

    def enter(self, visit: Visit, x: Tensor) -> None:
        """Tell `visit` which tokens it computes, from the stream `x` that it will be given."""
        ...

    def leave(self, x: Tensor) -> Left:
        """What the last visit's stream makes."""
        ...


class State(Protocol):
    """What one kind of halting knows of the tokens of a batch."""

    def gate(self, x_BTD: Tensor, before: Rows) -> tuple[Rows, int]:
        """Who takes the next pass, and how many gates were asked; `x_BTD` are the states that the tokens `before` left."""
        ...

    def source(self, x_BTD: Tensor) -> Tensor:
        """What a visit that is given the states `x_BTD` reads keys and values from; it stays the same for tokens that halted."""
        ...

    def share(self) -> Tensor | None:
        """How much every token still counts in statistics of routing, [B, T]; None: one."""
        ...

    def leave(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads, and the weighted loss of every token [B, T]."""
        ...


class NoHalting(nn.Module):
    """Every token takes every visit."""

    def begin(self, x: Tensor, tokens_BT: Tensor, repeats: int, cached: bool) -> Walk:
        return WholeBatch(x, tokens_BT)


class WholeBatch:
    """The walk of a batch from which nobody leaves early."""

    def __init__(self, x: Tensor, tokens_BT: Tensor) -> None:
        self.shape, self.nothing_B = tokens_BT.shape, x.new_zeros(tokens_BT.shape[0])
        self.computed: list[Computed] = []

    def enter(self, visit: Visit, x: Tensor) -> None:
        self.computed.append(Computed(self.shape.numel(), self.shape.numel(), 0))

    def leave(self, x: Tensor) -> Left:
        return Left(x, self.nothing_B, self.shape[1], self.computed)


class Passes:
    """The walk of a batch whose tokens may halt.

    A token's keys and values are made once more in the pass after its last, whose source is final, and kept from then on; not at
    all where none of its sequence is left and nobody will decode further (`cached`).
    """

    def __init__(self, state: State, x_BTD: Tensor, cached: bool) -> None:
        self.state, self.cached = state, cached
        self.queries = self.keys = Rows(torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device))
        self.computed: list[Computed] = []
        self.skipping: dict[int, Skipping] = {}

    def enter(self, visit: Visit, x_BTD: Tensor) -> None:
        gates = self._begin_pass(x_BTD) if visit.layer == 0 else 0
        kept = self.skipping[visit.layer].fresh if visit.layer in self.skipping else None
        visit.skipping = self.skipping[visit.layer] = Skipping(self.queries, self.keys, self.state.source(x_BTD), self.state.share(), kept)
        self.computed.append(Computed(len(self.queries), len(self.keys), gates))

    def _begin_pass(self, x_BTD: Tensor) -> int:
        before = self.queries
        self.queries, gates = self.state.gate(x_BTD, before)
        unfinished_B1 = self.queries.chosen_BT.any(dim=1, keepdim=True)
        self.keys = before if self.cached else Rows(before.chosen_BT & unfinished_B1)
        return gates

    def leave(self, x_BTD: Tensor) -> Left:
        y_BTD, ponder_BT = self.state.leave(x_BTD)
        ponder_B = ponder_BT.sum(dim=1) / max(ponder_BT.shape[1], 1)
        return Left(y_BTD, ponder_B, None, self.computed)


def run_layer(layer: nn.Module, x_BTD: Tensor, where: Positions, visit: Visit) -> tuple[Tensor, Statistics]:
    """The stream after `layer` [B, T, D], whose tokens that the visit skips stand still, and statistics by sequence."""
    skipping = visit.skipping
    if skipping is None:
        return layer(x_BTD, where, visit)
    rows = skipping.queries
    y_N1D, statistics = layer(rows.take(x_BTD).unsqueeze(1), where, visit)
    return rows.put(x_BTD, y_N1D.squeeze(1)), skipping.by_sequence(statistics)
