"""What a model is, as data: the `model:` part of a recipe.

Slots (`attention`, `feed_forward`, `residual`) are filled by name: their `kind` picks the class that reads the other fields.
Symbols as in the MoEUT paper (arXiv 2405.16039): G layers in a group, R repeats, N_E and N_A experts, K and K_A chosen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.slot_config import Count, FeedForwardSlot, Strict
from model.sparse_config import PeerConfig, PKMConfig, PKMHalvesConfig, TopKConfig


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


class DenseFeedForwardConfig(FeedForwardSlot):
    """Two dense layers with ReLU and biases: the parameter-matched baseline."""

    kind: Literal["dense"] = "dense"
    d_ff: int = Field(ge=1)

    def parameters(self, d_model: int) -> Count:
        count = 2 * d_model * self.d_ff + self.d_ff + d_model
        return Count(count, count)

    def macs(self, d_model: int, exact: bool) -> int:
        return 2 * d_model * self.d_ff


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


class DenseAttentionConfig(Strict):
    """Multi-head attention without biases and without experts."""

    kind: Literal["dense"] = "dense"
    n_heads: int = Field(ge=1)
    d_head: int = Field(ge=1)
    rotary: RotaryConfig = RotaryConfig()


class SingleStreamConfig(Strict):
    """The ordinary residual stream."""

    kind: Literal["single"] = "single"


class AltUpConfig(Strict):
    """Alternating updates (arXiv 2301.13310): K residual streams, of which a visit's layer computes one.

    `altup` widens embedding and head K times; `recycled_altup` keeps those of one stream. `block` chooses the stream a
    visit computes (`model.streams.active_streams`), `compute_input` whether its layer reads the stream as it was (the
    paper) or as predicted (Gemma 3n), `coefficients` whether every visit has its own or the visits of a layer share them, `routed`
    whether they depend on the token (Gemma 3n) or are the same for all (the paper).
    """

    kind: Literal["altup", "recycled_altup"]
    streams: int = Field(default=2, ge=2)
    block: Literal["alternating", "by_visit", "same"] = "alternating"
    compute_input: Literal["old", "predicted"] = "old"
    coefficients: Literal["visit", "layer"] = "visit"
    routed: bool = False


class DepthConfig(Strict):
    """Depth as a schedule: prelude layers, then `group` distinct layers `repeats` times, then coda layers.

    `order` is `cycle` (ABAB..., the paper's) or `loop` (AABB...). A plain transformer is `group: L, repeats: 1`.
    """

    prelude: int = Field(default=0, ge=0)
    group: int = Field(default=2, ge=1)
    repeats: int = Field(default=8, ge=1)
    coda: int = Field(default=0, ge=0)
    order: Literal["cycle", "loop"] = "cycle"

    @property
    def n_layers(self) -> int:
        """Distinct layers, which is how many sets of weights there are."""
        return self.prelude + self.group + self.coda

    @property
    def n_visits(self) -> int:
        """Unrolled depth: how many times some layer is applied to a token."""
        return self.prelude + self.group * self.repeats + self.coda

    def schedule(self) -> list[int]:
        """Layer number of every visit, in order."""
        first = self.prelude
        body = list(range(first, first + self.group))
        loop = [layer for layer in body for _ in range(self.repeats)]
        visits = body * self.repeats if self.order == "cycle" else loop
        return list(range(first)) + visits + list(range(first + self.group, self.n_layers))


Attention = Annotated[SwitchHeadConfig | DenseAttentionConfig, Field(discriminator="kind")]
FeedForward = Annotated[
    SigmaMoEConfig | DenseFeedForwardConfig | TopKConfig | PKMConfig | PKMHalvesConfig | PeerConfig, Field(discriminator="kind")
]
Residual = Annotated[SingleStreamConfig | AltUpConfig, Field(discriminator="kind")]


class ModelConfig(Strict):
    """A decoder-only language model whose layers may be visited more than once.

    `feed_forward_at` puts another slot into single layers, by layer number: a memory in the middle of a dense model.
    """

    vocab_size: int = Field(ge=2)
    d_model: int = Field(ge=1)
    depth: DepthConfig = DepthConfig()
    attention: Attention
    feed_forward: FeedForward
    feed_forward_at: dict[int, FeedForward] = Field(default_factory=dict)
    residual: Residual = SingleStreamConfig()
    norm: Literal["peri", "pre", "post"] = "peri"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _other_slots_fit(self) -> ModelConfig:
        for layer, slot in self.feed_forward_at.items():
            if not 0 <= layer < self.depth.n_layers:
                raise ValueError(f"feed_forward_at names layer {layer}; choose one of 0..{self.depth.n_layers - 1}")
            # Counts of routes are one table, visits by experts.
            if slot.routed_experts or self.feed_forward.routed_experts:
                kind = (slot if slot.routed_experts else self.feed_forward).kind
                raise ValueError(
                    f"feed_forward_at cannot stand beside or hold '{kind}': all visits must have as many experts; leave it out"
                )
        return self

    def feed_forward_of(self, layer: int) -> FeedForward:
        """The slot of distinct layer `layer`."""
        return self.feed_forward_at.get(layer, self.feed_forward)
