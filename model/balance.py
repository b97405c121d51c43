"""The entropy regulariser (arXiv 2405.16039 eq. 4): values that flow through the forward, never lists on a module.

p is the mean softmax over all tokens of a sequence AND all visits of one distinct layer; the regulariser is the sum over
distinct layers of weight * sum_e p ln p, heads averaged. It lies between -weight * ln E (even use) and 0 (collapse).

Shape suffixes: B sequences, M routers side by side (heads), E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.router import negative_entropy
from model.attention import Statistics


class BalanceSums:
    """Running sums of the softmax over tokens and visits, by distinct layer and router name, float32 at least."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self._sums: dict[tuple[int, str], Tensor] = {}
        self._visits: dict[tuple[int, str], int] = {}

    def add(self, layer: int, statistics: Statistics) -> None:
        """Add what one visit of distinct layer `layer` summed over its tokens: [B, M, E] a router."""
        for name, sum_BME in statistics.items():
            key = (layer, name)
            self._sums[key] = self._sums[key] + sum_BME if key in self._sums else sum_BME
            self._visits[key] = self._visits.get(key, 0) + 1

    def finish(self, n_sequences: int, n_tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted regulariser of every sequence [B], and its mean over sequences [].

        Both in the type of `like`, float32 at least. For a batch without sequences the mean is zero, still connected to
        its gradients.
        """
        balance_B = like.new_zeros(n_sequences, dtype=torch.promote_types(like.dtype, torch.float32))
        entropies = self._entropies(n_tokens)
        for (_, name), entropy_BM in entropies.items():
            balance_B = balance_B + self.weights[name] * entropy_BM.mean(dim=1)
        return balance_B, self._mean(balance_B, entropies)

    def _mean(self, balance_B: Tensor, entropies: dict[tuple[int, str], Tensor]) -> Tensor:
        return balance_B.sum() / max(balance_B.shape[0], 1)

    def _entropies(self, n_tokens: int) -> dict[tuple[int, str], Tensor]:
        """sum_e p ln p of every sequence and router [B, M], by distinct layer and router name."""
        entropies = {}
        for key, sum_BME in self._sums.items():
            p = (sum_BME / (n_tokens * self._visits[key])).flatten(0, 1)
            entropies[key] = negative_entropy(p).view(sum_BME.shape[:2])
        return entropies
