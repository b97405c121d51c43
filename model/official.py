"""What the official library computes in float32 even where the model is float64, done in the same order.

Its rotary tables, its attention routers and their part of the regulariser are float32 in any model (RobertCsordas/moeut
@87f0497). Against it a model that is float64 throughout differs by 2e-8 in logits and 1e-7 in gradients; with these pieces
the two agree to 1e-15. In float32 and bfloat16 models they change nothing but the order of rounding.

Shape suffixes: B sequences, T tokens, N = B*T, R visits, M routers side by side (heads), E experts, K chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.router import Routed
from model.attention import Statistics
from model.balance import BalanceSums, Key, Means
from model.balance_config import BalanceTerm
from model.moeut import MoEUT
from model.router import Router
from model.switchhead import SwitchHead


def keep_official_float32(model: MoEUT) -> None:
    """Make `model` compute in float32 what the official library computes in float32. Its attention routers are new, without values."""
    model.angle_type = torch.float32
    model.balance_sums = OfficialBalance
    for module in model.modules():
        if isinstance(module, SwitchHead):
            module.value_router = _rounded(module.value_router)
            module.output_router = _rounded(module.output_router)


class RoundedRouter(Router):
    """A router whose logits are rounded to float32; its statistic is the logits themselves, [B, T, M, E]."""

    def _logits(self, x_BTD: Tensor, weight: Tensor) -> Tensor:
        return super()._logits(x_BTD, weight).float()

    def _route(self, logits_BTME: Tensor, chosen: Tensor | None, generator: torch.Generator | None) -> Routed:
        routed = super()._route(logits_BTME, chosen, generator)
        # All scores first, then the chosen: the last bit of a vectorised sigmoid depends on a number's place in memory.
        return routed._replace(weight=logits_BTME.sigmoid().gather(-1, routed.expert), statistic=logits_BTME)


class OfficialBalance(BalanceSums):
    """The regulariser with the attention routers' part in log space, over the logits of all visits of a layer at once."""

    def __init__(self, terms: dict[str, BalanceTerm], step_means: Means | None = None) -> None:
        super().__init__(terms, step_means)
        self._logits: dict[Key, list[Tensor]] = {}

    def add(self, layer: int, statistics: Statistics) -> None:
        """Logits [B, T, M, E] of rounded routers are kept; what other routers give is summed."""
        for name, statistic in statistics.items():
            if statistic.ndim == 4:
                self._logits.setdefault((layer, name), []).append(statistic)
            else:
                super().add(layer, {name: statistic})

    def _mean(self, balance_B: Tensor, values: dict[Key, Tensor]) -> Tensor:
        """Added up in float32, layer by layer, attention first: bit for bit the number that the official library reports."""
        if balance_B.shape[0] == 0:
            return super()._mean(balance_B, values)
        mean = {key: entropy_BM.mean() for key, entropy_BM in values.items()}
        total = balance_B.new_zeros((1,), dtype=torch.float32)  # one element and not none: so a wider addend is narrowed
        for layer in sorted({layer for layer, _ in mean}):
            if (layer, "attention.output") in mean:
                both = mean[layer, "attention.output"] + mean[layer, "attention.value"]
                total = total + self.terms["attention.output"].weight * both
            total = total + self.terms["feed_forward"].weight * mean[layer, "feed_forward"]
        return total.squeeze(0)

    def _values(self, n_tokens: int | None) -> dict[Key, Tensor]:
        assert n_tokens is not None, "no token halts in the official library"
        entropies = super()._values(n_tokens)
        for key, logits in self._logits.items():
            logits_BTRME = torch.stack(logits, dim=2)
            log_p_BME = logits_BTRME.flatten(1, 2).log_softmax(-1).logsumexp(1) - math.log(n_tokens * len(logits))
            entropies[key] = (log_p_BME * log_p_BME.exp()).sum(-1)
        return entropies


def _rounded(router: Router) -> RoundedRouter:
    return RoundedRouter(router.name, router.weight.shape[1], router.n_experts, router.top_k, router.dropout, router.heads)
