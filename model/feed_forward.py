"""The feed-forward slot: routed experts, and the dense baseline.

Shape suffixes: B sequences, T tokens, D model width, F expert width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.expert_mlp import expert_mlp
from model.attention import Statistics
from model.bank import ExpertBank
from model.dense_config import DenseFeedForwardConfig
from model.exchange import Exchange, ExpertWork, run_experts
from model.initialise import Constant, Normal, Rules, TruncatedNormal
from model.moe_config import RoutedConfig
from model.slot_router import SlotRouter
from model.visit import Visit


class RoutedFeedForward(nn.Module):
    """y = sum over the K chosen experts of weight * relu(x up) down, no biases; sigma-MoE's weight: arXiv 2405.16039 eq. 1-3.

    Banks `up` [E, D, F] and `down` [E, F, D]. `recompute` keeps no hidden activations for the backward.
    """

    def __init__(self, d_model: int, config: RoutedConfig, exchange: Exchange, recompute: bool = False) -> None:
        super().__init__()
        self.d_model, self.config, self.exchange, self.recompute = d_model, config, exchange, recompute
        self.router = SlotRouter(d_model, config)
        self.up = ExpertBank(exchange, config.n_experts, d_model, config.d_expert)
        self.down = ExpertBank(exchange, config.n_experts, config.d_expert, d_model)

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, visit: Visit) -> tuple[Tensor, Statistics]:
        """Experts read `data_BTD`, the router `n_BTD`: y [B, T, D] and the router's statistic."""
        routing = self.router(n_BTD, visit.record, visit.repeat)
        exchanged = visit.record.setdefault("feed_forward.exchange", {})
        choices = (routing.expert_NMK.flatten(1), routing.weight_NMK.flatten(1))
        y = run_experts(self.exchange, self._experts, data_BTD.flatten(0, 1), *choices, self.config.n_experts, exchanged)
        return y.view_as(data_BTD), {"feed_forward": routing.statistic}

    def _experts(self, work: ExpertWork) -> Tensor:
        banks = self.up.gathered(), self.down.gathered()
        return expert_mlp(work.x_SD, work.row_Q, work.expert_Q, work.weight_Q, *banks, self.recompute)

    def init_rules(self, scale: float) -> Rules:
        """Normals; the fan-in of `down` is the width of all experts together, or with `init: standard` of its own."""
        counted = self.config.n_experts if self.config.init == "moeut" else 1
        rules: Rules = {f"router.{name}": rule for name, rule in self.router.init_rules(scale).items()}
        narrow = scale / (counted * self.config.d_expert) ** 0.5
        return rules | {"up.weight": Normal(scale / self.d_model**0.5), "down.weight": Normal(narrow)}


class DenseFeedForward(nn.Module):
    """relu(x up + b) down + c: the parameter-matched baseline."""

    def __init__(self, d_model: int, config: DenseFeedForwardConfig) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, d_model)

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, visit: Visit) -> tuple[Tensor, Statistics]:
        """y [B, T, D] of `data_BTD`, and no statistics."""
        return self.down(torch.relu(self.up(data_BTD))), {}

    def init_rules(self, scale: float) -> Rules:
        """Truncated normals of variance scale^2 / fan-in, biases zero."""
        up, down = TruncatedNormal(scale / self.up.in_features**0.5), TruncatedNormal(scale / self.down.in_features**0.5)
        return {"up.weight": up, "up.bias": Constant(0.0), "down.weight": down, "down.bias": Constant(0.0)}
