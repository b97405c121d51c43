"""Product keys: the best k of n * n keys at the cost of 2n dot products (arXiv 1907.05242, section 3.1.2).

A key is a pair of sub-keys, one of each half; its score is the sum of the halves' scores. Slot i1 * n + i2 has the pair (i1, i2).

Shape suffixes: T tokens, Q queries a token (1 read by all heads, or H), H heads, G sets of sub-keys (1 for all heads, or H),
n sub-keys of a half, c width of a half, K slots a head, P pairs of ranks.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.rows import wide_dtype
from kernels.table_rows import gather_dot
from model.batch_norm import BatchNorm
from model.norm import LayerNorm
from model.router import Record, recorded

MOST_SCORES = 2**27
"""Of one half at a time: half a gibibyte in float32."""


class Winners(NamedTuple):
    """The slots that every head of a token picked, int64, and their scores, in float32 at least, differentiable."""

    slot_THK: Tensor
    score_THK: Tensor


def best_slots(first_THn: Tensor, second_THn: Tensor, top_k: int, prune: bool = True) -> Tensor:
    """Slots of the `top_k` largest sums first[i1] + second[i2], largest first, int64 [T, H, K]. Exact.

    Winners lie among the best `top_k` of each half. With `prune`, of the pairs of ranks (a, b), counted from 1, only those with
    a * b <= top_k are added up: any other pair has top_k pairs of better ranks before it.

    Args:
        first_THn, second_THn: scores of the sub-keys. top_k: at most n * n.
    """
    n_keys = first_THn.shape[-1]
    n_ranks = min(top_k, n_keys)
    one, two = first_THn.topk(n_ranks, dim=-1), second_THn.topk(n_ranks, dim=-1)
    a_P, b_P = _rank_pairs(n_ranks, top_k if prune else n_keys**2, first_THn.device)
    pair_THK = (one.values[..., a_P] + two.values[..., b_P]).topk(top_k, dim=-1).indices
    return one.indices.gather(-1, a_P[pair_THK]) * n_keys + two.indices.gather(-1, b_P[pair_THK])


@cache
def _rank_pairs(n_ranks: int, largest_product: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pairs of ranks, here from 0, whose product, counted from 1, is at most `largest_product`. Kept: a copy to a device waits for it."""
    pairs = [(a, b) for a in range(n_ranks) for b in range(min(n_ranks, largest_product // (a + 1)))]
    a_P, b_P = torch.tensor(pairs, device=device).unbind(1)
    return a_P, b_P


class ProductKeys(nn.Module):
    """Sub-keys, and the choice of `top_k` slots a head by a token's queries.

    `first` and `second`, [G*n, c]: a set's sub-keys follow one another. The choice is made without gradients and kept; winners'
    scores are dot products of their own, so no [T, H, n] is kept for the backward, and its sums are repeatable.
    """

    def __init__(self, name: str, heads: int, sets: int, n_keys: int, top_k: int, d_query: int) -> None:
        super().__init__()
        self.name, self.heads, self.sets, self.n_keys, self.top_k = name, heads, sets, n_keys, top_k
        self.widths = (d_query // 2, d_query - d_query // 2)
        self.first, self.second = (nn.Parameter(torch.empty(sets * n_keys, width)) for width in self.widths)

    def forward(self, query_TQD: Tensor, record: Record) -> Winners:
        """Choose by `query_TQD`, whose halves have `widths`, or take the choices of `record[name]`, int64 [T, H, K].

        Raises:
            ModelError: the recorded choices do not fit this batch.
        """
        one_TQc, two_TQc = query_TQD.split(self.widths, dim=-1)
        slot_THK = recorded(record, self.name, (query_TQD.shape[0], self.heads, self.top_k))
        if slot_THK is None:
            slot_THK = record[self.name] = self._choose(one_TQc, two_TQc)
        one = self._scores(one_TQc, self.first, slot_THK // self.n_keys)
        return Winners(slot_THK, one + self._scores(two_TQc, self.second, slot_THK % self.n_keys))

    @torch.no_grad()
    def _choose(self, one_TQc: Tensor, two_TQc: Tensor) -> Tensor:
        """[T, H, K], of some tokens after others where scores of all at once would fill the memory."""
        most = max(1, MOST_SCORES // (self.heads * self.n_keys))
        halves = zip(one_TQc.split(most), two_TQc.split(most), strict=True)
        return torch.cat(
            [best_slots(self._all_scores(one, self.first), self._all_scores(two, self.second), self.top_k) for one, two in halves]
        )

    def _all_scores(self, query_TQc: Tensor, key_Fc: Tensor) -> Tensor:
        """Of one half, every head with every sub-key of its set: [T, H, n], float32 at least, for equal choices in any layout."""
        wide = wide_dtype(query_TQc.dtype)
        key_Gnc = key_Fc.to(wide).view(self.sets, self.n_keys, -1)
        query_THc = query_TQc.to(wide).expand(-1, self.heads, -1)
        return torch.einsum("thc,hnc->thn", query_THc, key_Gnc.expand(self.heads, -1, -1))

    def _scores(self, query_TQc: Tensor, key_Fc: Tensor, key_THK: Tensor) -> Tensor:
        """Of one half, the sub-keys `key_THK` alone: [T, H, K]."""
        if self.sets > 1:
            key_THK = key_THK + torch.arange(0, len(key_Fc), self.n_keys, device=key_THK.device)[:, None]
        rows, queries = query_TQc.flatten(0, 1), query_TQc.shape[1]
        return gather_dot(rows, key_Fc, key_THK.reshape(len(rows), self.heads // queries * self.top_k)).view_as(key_THK)


class Queries(nn.Module):
    """A query for every head: a linear map, then where asked layer norm of each head's query, or batch norm of every feature.

    It reads one token only, but for batch norm in training.
    """

    def __init__(self, d_model: int, heads: int, d_key: int, bias: bool, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(d_model, heads * d_key, bias=bias)
        self.norm = LayerNorm(d_key) if norm == "layer" else BatchNorm("queries", heads * d_key) if norm == "batch" else None

    def forward(self, n_BTD: Tensor, record: Record) -> Tensor:
        """[B*T, H, d_key] in the weights' type; batch norm leaves its sums in `record`."""
        query_TF = self.linear(n_BTD.flatten(0, 1))
        if isinstance(self.norm, BatchNorm):
            query_TF = self.norm(query_TF, record)
        query_THd = query_TF.unflatten(-1, (self.heads, -1))
        return self.norm(query_THd).to(query_THd.dtype) if isinstance(self.norm, LayerNorm) else query_THd
