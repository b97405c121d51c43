"""The router of a slot in any form that its configuration has.

Shape suffixes: B sequences, T tokens, N tokens of all sequences, M routers side by side (1 here), E experts, K chosen, D model width,
H width of the router's hidden layer, C entries of a statistic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.router import Routed, count, select
from kernels.rows import wide_dtype
from kernels.wide_linear import wide_linear
from model.balance_config import BiasBalance, EntropyBalance, NoBalance
from model.initialise import Constant, Normal, Rules
from model.moe_config import RoutedConfig, SBaseConfig
from model.moved import Moved
from model.regularisers import statistic
from model.router import Record, Router
from model.scoring import scores, sinkhorn, weights


class SlotRouter(Router, Moved):
    """Logits from a linear map, or from two with a tanh between; scores, choice and weights as `config` says.

    Where the configuration is sigma-MoE's own, `kernels.router` does it in one pass.

    Attributes:
        bias_steps: of balance kind `bias`, by how many rates every expert's bias has moved: int64 [E], exact in a model of any type.
    """

    bias_steps: Tensor

    def __init__(self, d_model: int, config: RoutedConfig, name: str = "feed_forward") -> None:
        width = config.router_hidden or d_model
        super().__init__(name, width, config.n_experts, config.top_k, config.expert_dropout)
        self.config = config
        self.hidden = None if config.router_hidden is None else nn.Linear(d_model, config.router_hidden)
        if isinstance(config.balance, BiasBalance):
            self.register_buffer("bias_steps", torch.zeros(config.n_experts, dtype=torch.int64))

    @property
    def moves(self) -> bool:
        """Whether it has biases."""
        return isinstance(self.config.balance, BiasBalance)

    def told_by(self, record: Record) -> Tensor:
        """Routes an expert, [E]."""
        load_E: Tensor = record["loads"][self.name][0]
        return load_E

    def move(self, total: Tensor) -> None:
        """One rate up where an expert had less than the mean of the loads `total` [E], one down where it had more."""
        self.bias_steps += (total.sum() - self.n_experts * total).sign().to(self.bias_steps)

    def init_rules(self, scale: float) -> Rules:
        """By the name of its parameters; a hidden layer starts as a linear map of its own."""
        rules: Rules = {"weight": Normal(scale / self.weight.shape[-1] ** 0.5, equal_rows=self.config.init == "moeut")}
        if self.hidden is not None:
            rules |= {"hidden.weight": Normal(scale / self.hidden.in_features**0.5), "hidden.bias": Constant(0.0)}
        return rules

    def _logits(self, x_BTD: Tensor, weight: Tensor) -> Tensor:
        if self.hidden is None:
            return super()._logits(x_BTD, weight)
        wide = wide_dtype(x_BTD.dtype)
        hidden_BTH = torch.tanh(wide_linear(x_BTD, self.hidden.weight) + self.hidden.bias.to(wide))
        return F.linear(F.dropout(hidden_BTH, self.config.router_dropout, self.training), weight.to(wide))

    def _route(self, logits_BTME: Tensor, chosen: Tensor | None, generator: torch.Generator | None) -> Routed:
        if self._is_plain():
            return super()._route(logits_BTME, chosen, generator)
        logits_BTME = logits_BTME.to(wide_dtype(logits_BTME.dtype))
        dropout = self.dropout if self.training else 0.0
        expert = select(self._preference(logits_BTME.detach()), self.top_k, dropout, generator) if chosen is None else chosen
        if self.config.balance_terms():
            statistic_BMC = statistic(self.config.balance, logits_BTME, expert)
        else:  # nobody reads it
            statistic_BMC = logits_BTME.new_zeros(logits_BTME.shape[0], logits_BTME.shape[2], 0)
        return Routed(expert, weights(logits_BTME, expert, self.config), statistic_BMC, count(expert, self.n_experts))

    def _is_plain(self) -> bool:
        """Whether the form is the one of `kernels.router`."""
        config = self.config
        own_choice = isinstance(config, SBaseConfig) or not isinstance(config.balance, EntropyBalance | NoBalance)
        return config.score == "sigmoid" and not config.renormalise and not own_choice

    def _preference(self, logits_BTME: Tensor) -> Tensor:
        """What the choice takes the largest of; any increasing function of the logits chooses as they do."""
        config = self.config
        if isinstance(config, SBaseConfig) and self.training:
            tokens_first = logits_BTME.transpose(1, 2)
            if config.choice_scope == "micro_batch":
                tokens_first = logits_BTME.flatten(0, 1).transpose(0, 1)
            return sinkhorn(tokens_first, config.sinkhorn_iterations).transpose(-3, -2).reshape(logits_BTME.shape)
        if isinstance(config.balance, BiasBalance):
            return scores(logits_BTME, config) + config.balance.rate * self.bias_steps
        return logits_BTME
