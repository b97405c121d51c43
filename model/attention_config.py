"""Attention slots."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.slot_config import Strict


class RotaryConfig(Strict):
    """Rotary positions on the first `fraction` of every head (rounded down to an even number of channels)."""

    fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    base: float = Field(default=10000.0, gt=0.0)


class SwitchHeadConfig(Strict):
    """SwitchHead attention (arXiv 2312.07987): value and output projections chosen per head among N_A experts.

    With `n_experts: 1` two published forms exist: `output_gate` (official library: dense value and output, one
    sigmoid gate a head on the attention result) and `gated_expert` (training code: value gated by the source token,
    output gated by the destination token).
    """

    kind: Literal["switchhead"] = "switchhead"
    n_heads: int = Field(ge=1)
    d_head: int = Field(ge=1)
    n_experts: int = Field(ge=1)
    top_k: int = Field(default=2, ge=1)
    single_expert: Literal["output_gate", "gated_expert"] = "output_gate"
    rotary: RotaryConfig = RotaryConfig()
    expert_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    balance_weight: float = Field(default=0.001, ge=0.0)

    @model_validator(mode="after")
    def _top_k_fits(self) -> SwitchHeadConfig:
        if self.n_experts > 1 and self.top_k > self.n_experts:
            raise ValueError(f"top_k is {self.top_k} but a head has {self.n_experts} experts; choose top_k <= {self.n_experts}")
        return self

    @property
    def router_rows(self) -> int:
        """Rows of the weights of all routers together."""
        gated = self.n_experts == 1 and self.single_expert == "output_gate"
        return 0 if gated else 2 * self.n_heads * self.n_experts


class DenseAttentionConfig(Strict):
    """Multi-head attention without biases and without experts."""

    kind: Literal["dense"] = "dense"
    n_heads: int = Field(ge=1)
    d_head: int = Field(ge=1)
    rotary: RotaryConfig = RotaryConfig()

    @property
    def router_rows(self) -> int:
        return 0
