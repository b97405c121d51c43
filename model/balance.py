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

    def per_sequence(self, empty_B: Tensor, n_tokens: int) -> Tensor:
        """The weighted regulariser of every sequence [B]; `empty_B` holds the zeros it starts from."""
        total_B = empty_B
        for key, sum_BME in self._sums.items():
            n_sequences, n_routers, _ = sum_BME.shape
            p = (sum_BME / (n_tokens * self._visits[key])).flatten(0, 1)
            total_B = total_B + self.weights[key[1]] * negative_entropy(p).view(n_sequences, n_routers).mean(dim=1)
        return total_B


def mean_over_sequences(balance_B: Tensor) -> Tensor:
    """Mean of the regulariser; zero, still connected to its gradients, for a batch without sequences."""
    return torch.sum(balance_B) / max(balance_B.shape[0], 1)
