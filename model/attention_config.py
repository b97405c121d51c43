"""Attention slots."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.balance_config import BalanceTerm, EntropyBalance, Regularised
from model.moe_config import SigmaMoEConfig
from model.slot_config import Count, Strict


class RotaryConfig(Strict):
    """Rotary positions on the first part of every head."""

    fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of every head's channels that is rotated, rounded down to an even number."""
    base: float = Field(default=10000.0, gt=0.0)
    """Base of the wavelengths."""


class AttentionSlot(Strict):
    """Base of the attention kinds."""

    n_heads: int = Field(ge=1)
    """Heads, each with keys and values of its own (H)."""
    d_head: int = Field(ge=1)
    """Width of a head."""
    rotary: RotaryConfig = RotaryConfig()
    """Rotary positions."""

    @property
    def query_heads(self) -> int:
        """Heads that a token asks with; several may share keys and values."""
        return self.n_heads

    @property
    def router_rows(self) -> int:
        """Rows of the weights of all routers together."""
        return 0

    def balance_terms(self) -> dict[str, BalanceTerm]:
        """What the loss takes of the statistics that the module gives, by router name."""
        return {}

    @abstractmethod
    def parameters(self, d_model: int) -> Count:
        """Parameters of one layer's slot, to the unit."""

    @abstractmethod
    def macs(self, d_model: int, exact: bool) -> tuple[int, int]:
        """Multiply-accumulates of one token's visit, without scores: for its key and value, and for its query and output."""


class SwitchHeadConfig(AttentionSlot):
    """SwitchHead attention (arXiv 2312.07987): value and output projections chosen per head among N_A experts."""

    kind: Literal["switchhead"] = "switchhead"
    n_experts: int = Field(ge=1)
    """Experts of a head, for its values and as many for its outputs (N_A)."""
    top_k: int = Field(default=2, ge=1)
    """Experts that a token chooses a head (K_A), for each of the two."""
    single_expert: Literal["output_gate", "gated_expert"] = "output_gate"
    """What `n_experts: 1` means. `output_gate` (official library): dense value and output, one sigmoid gate a head on the attention
    result; `gated_expert` (training code): value gated by the source token, output by the destination token."""
    expert_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability with which an expert is masked out of a token's choice in training."""
    balance_weight: float = Field(default=0.001, ge=0.0)
    """Weight in the loss of the entropy regulariser of the attention's routers."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> SwitchHeadConfig:
        if self.n_experts > 1 and self.top_k > self.n_experts:
            raise ValueError(f"top_k is {self.top_k} but a head has {self.n_experts} experts; choose top_k <= {self.n_experts}")
        return self

    @property
    def router_rows(self) -> int:
        return 0 if self.gated else 2 * self.n_heads * self.n_experts

    @property
    def gated(self) -> bool:
        """Whether it is the form without a choice, whose heads have a sigmoid gate each."""
        return self.n_experts == 1 and self.single_expert == "output_gate"

    def balance_terms(self) -> dict[str, BalanceTerm]:
        return dict.fromkeys(("attention.value", "attention.output"), BalanceTerm(self.balance_weight, EntropyBalance()))

    def parameters(self, d_model: int) -> Count:
        projection = d_model * self.n_heads * self.d_head
        if self.gated:
            return Count(4 * projection + self.n_heads * d_model, 4 * projection + self.n_heads * d_model)
        always = 2 * projection + 2 * self.n_heads * self.n_experts * d_model
        return Count(always + 2 * self.n_experts * projection, always + 2 * min(self.top_k, self.n_experts) * projection)

    def macs(self, d_model: int, exact: bool) -> tuple[int, int]:
        width = self.n_heads * self.d_head
        if self.gated:  # not in the authors' count: always exact
            return 2 * d_model * width, 2 * d_model * width + d_model * self.n_heads + width
        top_k = min(self.top_k, self.n_experts)
        side = (top_k + 1) * d_model * width + top_k * width + self.n_experts * d_model * (self.n_heads if exact else 1)
        return side, side


class DenseAttentionConfig(AttentionSlot):
    """Multi-head attention without biases and without experts."""

    kind: Literal["dense"] = "dense"

    def parameters(self, d_model: int) -> Count:
        projection = d_model * self.n_heads * self.d_head
        return Count(4 * projection, 4 * projection)

    def macs(self, d_model: int, exact: bool) -> tuple[int, int]:
        projection = d_model * self.n_heads * self.d_head
        return 2 * projection, 2 * projection


class MomhaConfig(AttentionSlot):
    """Mixture of multi-head attention (MoMHA; SUT, arXiv 2310.07096): query and output projections by experts, keys and values shared.

    A token's K of N experts are chosen once for both, weighed by the softmax over the chosen. The router is Linear, Tanh, Dropout,
    Linear.
    """

    kind: Literal["momha"] = "momha"
    n_experts: int = Field(ge=1)
    """Experts (N), each with `n_heads` query heads and their output projection."""
    top_k: int = Field(ge=1)
    """Experts that a token chooses (K)."""
    router_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout between the two layers of the router."""
    balance_weight: float = Field(default=0.001, ge=0.0)
    """Weight of the regulariser of `balance` in the loss."""
    balance: Annotated[Regularised, Field(discriminator="kind")] = EntropyBalance()
    """How the use of experts is kept even."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> MomhaConfig:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k is {self.top_k} but there are {self.n_experts} experts; choose top_k <= {self.n_experts}")
        return self

    @model_validator(mode="after")
    def _router_learns(self) -> MomhaConfig:
        self.routing(1)  # which says what is wrong with it
        return self

    @property
    def query_heads(self) -> int:
        return self.n_heads * self.top_k

    def routing(self, d_model: int) -> SigmaMoEConfig:
        """How experts are chosen and weighed, as a feed-forward with such a router says it."""
        return SigmaMoEConfig(
            n_experts=self.n_experts,
            top_k=self.top_k,
            score="softmax",
            softmax_over="chosen",
            router_hidden=d_model,
            router_dropout=self.router_dropout,
            balance=self.balance,
        )

    @property
    def router_rows(self) -> int:
        return self.n_experts

    def balance_terms(self) -> dict[str, BalanceTerm]:
        return {"attention": BalanceTerm(self.balance_weight, self.balance)}

    def parameters(self, d_model: int) -> Count:
        projection = d_model * self.n_heads * self.d_head
        always = 2 * projection + d_model**2 + d_model + self.n_experts * d_model
        return Count(always + 2 * self.n_experts * projection, always + 2 * self.top_k * projection)

    def macs(self, d_model: int, exact: bool) -> tuple[int, int]:
        """The published count has no such model: always exact. Only outputs are weighed."""
        width = self.n_heads * self.d_head
        router = d_model**2 + self.n_experts * d_model
        return 2 * d_model * width, 2 * self.top_k * d_model * width + self.top_k * width + router
