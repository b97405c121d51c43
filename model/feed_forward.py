"""The feed-forward slot: sigma-MoE, and the dense baseline.

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
from model.moe_config import SigmaMoEConfig
from model.router import Router
from model.visit import Visit


class SigmaMoE(nn.Module):
    """y = sum over the K best experts of sigmoid(score) * relu(x up) down (arXiv 2405.16039 eq. 1-3), no biases.

    Banks `up` [E, D, F] and `down` [E, F, D], router [E, D]. `recompute` keeps no hidden activations for the backward.
    """

    def __init__(self, d_model: int, config: SigmaMoEConfig, exchange: Exchange, recompute: bool = False) -> None:
        super().__init__()
        self.d_model, self.config, self.exchange, self.recompute = d_model, config, exchange, recompute
        self.router = Router("feed_forward", d_model, config.n_experts, config.top_k, config.expert_dropout)
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
        """Normals; `down` counts the width of all experts together, and router rows start with equal norms."""
        wide = scale / self.d_model**0.5
        narrow = scale / (self.config.n_experts * self.config.d_expert) ** 0.5
        return {"router.weight": Normal(wide, equal_rows=True), "up.weight": Normal(wide), "down.weight": Normal(narrow)}


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
