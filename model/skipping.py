"""A pass over some tokens of a batch: the others cost nothing but are still attended to.

Rows are one token each, [N, 1, D]: whatever works on N sequences of one token works on them, routers and experts too.

Shape suffixes: B sequences, T tokens, N rows, A rows of the sequence that has most, S keys, H heads, d head width, D model width,
M routers side by side, C entries of a statistic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from kernels.rows import add_rows
from model.rotary import Positions, rotate

KeysValues: TypeAlias = tuple[Tensor, Tensor]
"""Keys, rotated, and values of all tokens, [B, T, H, d]."""

OF_KEYS = {"attention.value"}
"""Routers that read the tokens whose keys and values are made; all others read those whose state the visit changes."""


class Rows:
    """The tokens where `chosen_BT` is true, sequence after sequence. Their number is read back to the host; for padding, A too."""

    def __init__(self, chosen_BT: Tensor) -> None:
        self.chosen_BT, self.shape = chosen_BT, chosen_BT.shape
        self.sequence_N, self.place_N = chosen_BT.nonzero(as_tuple=True)

    def __len__(self) -> int:
        return self.sequence_N.shape[0]

    @cached_property
    def _slot_N(self) -> Tensor:
        return (self.chosen_BT.cumsum(1) - 1)[self.sequence_N, self.place_N]

    @cached_property
    def _longest(self) -> int:
        return int(self.chosen_BT.sum(1).max()) if self.chosen_BT.numel() else 0

    def take(self, x_BT: Tensor) -> Tensor:
        """The rows of `x_BT` [B, T, ...]: [N, ...]."""
        return x_BT[self.sequence_N, self.place_N]

    def put(self, x_BT: Tensor, x_N: Tensor) -> Tensor:
        """`x_BT` [B, T, ...] with its rows replaced by `x_N`."""
        return x_BT.index_put((self.sequence_N, self.place_N), x_N)

    def pad(self, x_N: Tensor) -> Tensor:
        """[B, A, ...]: every sequence's rows from the left, zeros after them."""
        padded = x_N.new_zeros(self.shape[0], self._longest, *x_N.shape[1:])
        return padded.index_put((self.sequence_N, self._slot_N), x_N)

    def unpad(self, x_BA: Tensor) -> Tensor:
        """What `pad` made, back: [N, ...]."""
        return x_BA[self.sequence_N, self._slot_N]

    def sum_by_sequence(self, statistic_NMC: Tensor, share_BT: Tensor | None = None) -> Tensor:
        """[B, M, C]: a sequence's statistic is the sum over its rows, each times its share where shares are given."""
        if share_BT is not None:
            statistic_NMC = statistic_NMC * self.take(share_BT).to(statistic_NMC.dtype)[:, None, None]
        sum_BMC = statistic_NMC.new_zeros(self.shape[0], *statistic_NMC.shape[1:])
        add_rows(sum_BMC, self.sequence_N, statistic_NMC)
        return sum_BMC

    def positions(self, where: Positions) -> Positions:
        """Of each row, as a sequence of one token: angles alone."""
        cos, sin = (angle[self.place_N] if angle.ndim == 2 else angle[self.sequence_N, 0, self.place_N] for angle in (where.cos, where.sin))
        return replace(where, cos=cos[:, None, None], sin=sin[:, None, None])

    def mask(self, where: Positions) -> Tensor:
        """Who may attend to whom, bool [B, 1, A, S], of rows padded as `pad` does; padding attends as the first token."""
        n_sequences, n_tokens = self.shape
        allowed = where.mask
        if allowed is None:
            allowed = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=self.place_N.device).tril()
        allowed_BTS = allowed.expand(n_sequences, 1, *allowed.shape[-2:])[:, 0]
        place_BA = self.pad(self.place_N)
        return allowed_BTS.gather(1, place_BA[..., None].expand(*place_BA.shape, allowed_BTS.shape[2]))[:, None]


@dataclass
class Skipping:
    """Which tokens a visit computes, and what it knows of the others.

    Attributes:
        queries: tokens whose state the visit changes.
        keys: tokens whose keys and values must be made anew.
        source_BTD: what keys and values are read from.
        share_BT: how much a token counts in statistics of routing; None: one.
        kept: those of the layer's visit before, None at its first.
        fresh: those of this visit, left by attention for the layer's next one.
    """

    queries: Rows
    keys: Rows
    source_BTD: Tensor
    share_BT: Tensor | None
    kept: KeysValues | None
    fresh: KeysValues | None = None

    def source_rows(self) -> Tensor:
        """What keys and values are made from, [N, 1, D]."""
        return self.keys.take(self.source_BTD).unsqueeze(1)

    def by_sequence(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """What routers said of single rows, summed over each sequence: [B, M, C]."""
        rows = {name: self.keys if name in OF_KEYS else self.queries for name in statistics}
        return {name: rows[name].sum_by_sequence(statistic, self.share_BT) for name, statistic in statistics.items()}

    def spread(
        self, query_NH1d: Tensor, key_NH1d: Tensor, value_NH1d: Tensor, where: Positions
    ) -> tuple[Tensor, Tensor, Tensor, Positions]:
        """Queries of the rows [B, H, A, d], keys and values of all tokens [B, H, T, d], and who may attend to whom."""
        query_BAHd = self.queries.pad(rotate(query_NH1d, self.queries.positions(where)).squeeze(2))
        key_NHd, value_NHd = rotate(key_NH1d, self.keys.positions(where)).squeeze(2), value_NH1d.squeeze(2)
        kept = self.kept or tuple(new.new_zeros(*self.keys.shape, *new.shape[1:]) for new in (key_NHd, value_NHd))
        self.fresh = self.keys.put(kept[0], key_NHd), self.keys.put(kept[1], value_NHd)
        key_BHTd, value_BHTd = (kind_BTHd.transpose(1, 2) for kind_BTHd in self.fresh)
        return query_BAHd.transpose(1, 2), key_BHTd, value_BHTd, replace(where, mask=self.queries.mask(where), causal=False)
