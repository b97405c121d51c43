"""Feed-forward slots whose experts are chosen by a router over all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.balance_config import Balance, BalanceTerm, BiasBalance, EntropyBalance, NoBalance, Scope, SwitchBalance
from model.slot_config import Count, FeedForwardSlot


class RoutedConfig(FeedForwardSlot):
    """Base: K of N_E two-layer ReLU experts without biases; the kinds are other defaults, and `s_base` another choice."""

    params_knobs = ("n_experts", "d_expert")
    macs_knobs = ("top_k", "d_expert")
    n_experts: int = Field(ge=1)
    """Experts of a layer (N_E)."""
    d_expert: int = Field(default=128, ge=1)
    """Hidden units of an expert."""
    top_k: int = Field(ge=1)
    """Experts that a token chooses (K)."""
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    """A chosen expert's weight: the sigmoid of its logit, or a softmax of logits."""
    softmax_over: Literal["all", "chosen"] = "all"
    """What the softmax is taken over: `all` experts, before top-K; or the `chosen` ones, after it."""
    renormalise: bool = False
    """Divide a token's K weights by their sum."""
    router_hidden: int | None = Field(default=None, ge=1)
    """Width of a tanh layer between the router's input and its logits (SUT); null: none."""
    router_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout behind the router's hidden layer."""
    init: Literal["moeut", "standard"] = "moeut"
    """Starting values. `moeut` counts the width of all experts in the second layer and gives router rows one norm (arXiv 2310.10837
    section 5); `standard` takes every expert, and the router, for itself."""
    expert_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability with which an expert is masked out of a token's choice in training."""
    balance_weight: float = Field(default=0.01, ge=0.0)
    """Weight of the regulariser of `balance` in the loss; the kinds `bias` and `none` have none."""
    balance: Balance = EntropyBalance()
    """How the use of experts is kept even."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> RoutedConfig:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k is {self.top_k} but there are {self.n_experts} experts; choose top_k <= {self.n_experts}")
        return self

    @model_validator(mode="after")
    def _options_meet(self) -> RoutedConfig:
        if self.softmax_over == "chosen" and self.score != "softmax":
            raise ValueError(f"softmax_over is 'chosen' but score is '{self.score}'; set score to softmax, or leave softmax_over out")
        if self.top_k == 1 < self.n_experts and (self.renormalise or self.softmax_over == "chosen"):
            raise ValueError("top_k is 1: the one weight, renormalised, is always 1 and teaches the router nothing; set top_k to 2 or more")
        if self.router_dropout and self.router_hidden is None:
            raise ValueError(f"router_dropout is {self.router_dropout} but there is no hidden layer; set router_hidden, or leave it out")
        return self

    @property
    def routed_experts(self) -> int:
        return self.n_experts

    def router_weights(self, d_model: int) -> int:
        return self.n_experts * (self.router_hidden or d_model)

    def balance_terms(self) -> dict[str, BalanceTerm]:
        if isinstance(self.balance, BiasBalance | NoBalance):
            return {}
        return {"feed_forward": BalanceTerm(self.balance_weight, self.balance)}

    def statistic_scopes(self) -> dict[str, Scope]:
        return {} if isinstance(self.balance, NoBalance) else {"balance.scope": self.balance.scope}

    def parameters(self, d_model: int) -> Count:
        expert, router = 2 * d_model * self.d_expert, self._router_products(d_model) + (self.router_hidden or 0)
        return Count(self.n_experts * expert + router, self.top_k * expert + router)

    def macs(self, d_model: int, exact: bool) -> int:
        chosen_width = self.d_expert * self.top_k
        return 2 * d_model * chosen_width + self._router_products(d_model) + (chosen_width if exact else 0)

    def _router_products(self, d_model: int) -> int:
        """Weights of the router without biases, each used once a token."""
        if self.router_hidden is None:
            return d_model * self.n_experts
        return (d_model + self.n_experts) * self.router_hidden


class SigmaMoEConfig(RoutedConfig):
    """sigma-MoE (arXiv 2310.10837): K of N_E two-layer ReLU experts without biases, weighed by sigmoid scores without competition."""

    kind: Literal["sigma_moe"] = "sigma_moe"


class SwitchConfig(RoutedConfig):
    """Switch routing (arXiv 2101.03961) with the experts of sigma-MoE: the best by softmax, weighed by its probability."""

    kind: Literal["switch"] = "switch"
    top_k: int = Field(default=1, ge=1)
    score: Literal["sigmoid", "softmax"] = "softmax"
    init: Literal["moeut", "standard"] = "standard"
    balance: Balance = SwitchBalance()


class SBaseConfig(RoutedConfig):
    """S-BASE (arXiv 2202.01169; weights as in 2310.10837) with the experts of sigma-MoE: in training the choice is of scores evened out
    over tokens; sigmoid weights; when evaluating, the best scores are chosen."""

    kind: Literal["s_base"] = "s_base"
    choice_scope: Literal["sequence", "micro_batch"] = "micro_batch"
    """The tokens over which scores are evened out."""
    sinkhorn_iterations: int = Field(default=3, ge=1)
    """Sinkhorn iterations that even the scores out."""
    balance: Balance = NoBalance()

    @model_validator(mode="after")
    def _has_no_bias(self) -> SBaseConfig:
        if isinstance(self.balance, BiasBalance):
            raise ValueError("balance.kind is 'bias' but s_base evens its choice out already; choose none, entropy, switch or mim")
        return self

    def statistic_scopes(self) -> dict[str, Scope]:
        return super().statistic_scopes() | {"choice_scope": self.choice_scope}
