"""Feed-forward slots whose experts are chosen by a router over all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.slot_config import Count, FeedForwardSlot


class SigmaMoEConfig(FeedForwardSlot):
    """sigma-MoE feed-forward (arXiv 2310.10837): K of N_E experts by sigmoid score, no renormalisation."""

    kind: Literal["sigma_moe"] = "sigma_moe"
    n_experts: int = Field(ge=1)
    d_expert: int = Field(default=128, ge=1)
    top_k: int = Field(ge=1)
    expert_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    balance_weight: float = Field(default=0.01, ge=0.0)

    @model_validator(mode="after")
    def _top_k_fits(self) -> SigmaMoEConfig:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k is {self.top_k} but there are {self.n_experts} experts; choose top_k <= {self.n_experts}")
        return self

    @property
    def routed_experts(self) -> int:
        return self.n_experts

    def balance_weights(self) -> dict[str, float]:
        return {"feed_forward": self.balance_weight}

    def parameters(self, d_model: int) -> Count:
        expert, router = 2 * d_model * self.d_expert, self.n_experts * d_model
        return Count(self.n_experts * expert + router, self.top_k * expert + router)

    def macs(self, d_model: int, exact: bool) -> int:
        chosen_width = self.d_expert * self.top_k
        return 2 * d_model * chosen_width + d_model * self.n_experts + (chosen_width if exact else 0)
