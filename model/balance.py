"""The balance regularisers over a model's visits: values that flow through the forward, never lists on a module.

A visit's statistic is summed over the tokens of a sequence AND all visits of one distinct layer; the regulariser is the sum over
distinct layers of weight * value at the mean, heads averaged (arXiv 2405.16039 eq. 4 for the entropy of a sequence). It is divided by
no number of layers: one without such a router adds nothing and leaves the others' terms as they are.

A value at a mean over many sequences is taken as its tangent there: `value + slope . (own mean - mean)` of every sequence. Over all
sequences the tangents add up to the value itself and their gradients to its gradient, however the sequences are cut over micro-batches and
ranks, if all of them are told the same mean.

Shape suffixes: B sequences, M routers side by side (heads), C entries of a statistic (`model.regularisers`).
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from model.attention import Statistics
from model.balance_config import BalanceTerm
from model.regularisers import tokens_of, value

Key: TypeAlias = tuple[int, str]
"""A distinct layer and the name of a router in it."""
Means: TypeAlias = dict[Key, Tensor]
"""Statistics of a token, [M, C], by distinct layer and router name."""


class BalanceSums:
    """Running sums of statistics over tokens and visits, float32 at least.

    Args:
        terms: what counts, by router name; statistics without a term are left out.
        step_means: means over a whole step, for terms of scope `step`; without, this batch is the whole step.
    """

    def __init__(self, terms: dict[str, BalanceTerm], step_means: Means | None = None) -> None:
        self.terms, self._step_means = terms, step_means or {}
        self._sums: dict[Key, Tensor] = {}
        self._visits: dict[Key, int] = {}

    def add(self, layer: int, statistics: Statistics) -> None:
        """Add what one visit of distinct layer `layer` summed over its tokens: [B, M, C] a router."""
        for name, sum_BMC in statistics.items():
            if name not in self.terms:
                continue
            key = (layer, name)
            self._sums[key] = self._sums[key] + sum_BMC if key in self._sums else sum_BMC
            self._visits[key] = self._visits.get(key, 0) + 1

    def finish(self, n_sequences: int, n_tokens: int | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted regulariser of every sequence [B], and its mean over sequences [].

        Both in the type of `like`, float32 at least. For a batch without sequences the mean is zero, still connected to
        its gradients. `n_tokens`: of a sequence in every visit; None: visits differ in it, and
        each sum is divided by its own tokens (where means are over several sequences, these still count alike).
        """
        balance_B = like.new_zeros(n_sequences, dtype=torch.promote_types(like.dtype, torch.float32))
        values = self._values(n_tokens)
        for (_, name), value_BM in values.items():
            balance_B = balance_B + self.terms[name].weight * value_BM.mean(dim=1)
        return balance_B, self._mean(balance_B, values)

    def of_step_scope(self, n_tokens: int | None) -> Means:
        """Statistics of a token, summed over this batch's sequences, for the terms of scope `step`: their means over a step are the
        sums over all its batches divided by all its sequences.
        """
        of_step = [key for key in self._sums if self.terms[key[1]].balance.scope == "step"]
        return {key: self._token_mean(key, n_tokens).detach().sum(dim=0) for key in of_step}

    def _mean(self, balance_B: Tensor, values: dict[Key, Tensor]) -> Tensor:
        return balance_B.sum() / max(balance_B.shape[0], 1)

    def _values(self, n_tokens: int | None) -> dict[Key, Tensor]:
        """The regulariser of every sequence and router [B, M], by distinct layer and router name."""
        values = {}
        for key in self._sums:
            balance, mean_BMC = self.terms[key[1]].balance, self._token_mean(key, n_tokens)
            if balance.scope == "sequence":
                values[key] = value(balance, mean_BMC.flatten(0, 1)).view(mean_BMC.shape[:2])
                continue
            own_MC = mean_BMC.detach().sum(dim=0) / max(mean_BMC.shape[0], 1)
            told_MC = self._step_means.get(key) if balance.scope == "step" else None
            values[key] = _tangent(self.terms[key[1]], mean_BMC, own_MC if told_MC is None else told_MC.to(own_MC))
        return values

    def _token_mean(self, key: Key, n_tokens: int | None) -> Tensor:
        sum_BMC = self._sums[key]
        if n_tokens is None:
            return sum_BMC / tokens_of(self.terms[key[1]].balance, sum_BMC)
        return sum_BMC / (n_tokens * self._visits[key])


def _tangent(term: BalanceTerm, mean_BMC: Tensor, at_MC: Tensor) -> Tensor:
    """The regulariser's tangent at `at_MC`, taken at every sequence's own mean: [B, M]."""
    with torch.enable_grad():
        at_MC = at_MC.detach().requires_grad_()
        value_M = value(term.balance, at_MC)
        (slope_MC,) = torch.autograd.grad(value_M.sum(), at_MC)
    return value_M.detach() + ((mean_BMC - at_MC.detach()) * slope_MC).sum(dim=-1)
