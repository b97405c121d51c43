"""What a model is, as data: the `model:` part of a recipe.

Slots (`attention`, `feed_forward`, `residual`) are filled by name: their `kind` picks the class that reads the other fields.
Symbols as in the MoEUT paper (arXiv 2405.16039): G layers in a group, R repeats, N_E and N_A experts, K and K_A chosen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.attention_config import DenseAttentionConfig, SwitchHeadConfig
from model.balance_config import Scope
from model.dense_config import DenseFeedForwardConfig, TopKConfig
from model.depth_config import DepthConfig
from model.moe_config import SBaseConfig, SigmaMoEConfig, SwitchConfig
from model.product_key_config import PeerConfig, PKMConfig, PKMHalvesConfig
from model.slot_config import Strict
from model.stream_config import AltUpConfig, SingleStreamConfig

Attention = Annotated[SwitchHeadConfig | DenseAttentionConfig, Field(discriminator="kind")]
FeedForward = Annotated[
    SigmaMoEConfig | SwitchConfig | SBaseConfig | DenseFeedForwardConfig | TopKConfig | PKMConfig | PKMHalvesConfig | PeerConfig,
    Field(discriminator="kind"),
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

    @model_validator(mode="after")
    def _stream_carries_gradients(self) -> ModelConfig:
        if self.depth.backprop_repeats is not None and self.norm == "post":
            raise ValueError(
                f"depth.backprop_repeats is {self.depth.backprop_repeats} with norm 'post', whose stream is not a sum that carries "
                "gradients past a visit; choose norm peri or pre, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _routers_to_separate(self) -> ModelConfig:
        if "router" in self.depth.per_visit and not (self.attention.router_rows or self.feed_forward.routed_experts):
            raise ValueError(
                f"depth.per_visit has 'router' but neither attention '{self.attention.kind}' nor feed_forward "
                f"'{self.feed_forward.kind}' has one; leave it out"
            )
        return self

    def feed_forward_of(self, layer: int) -> FeedForward:
        """The slot of distinct layer `layer`."""
        return self.feed_forward_at.get(layer, self.feed_forward)

    def statistic_scopes(self) -> set[Scope]:
        """Over what the model's statistics of routing are taken."""
        return self.feed_forward.statistic_scopes().union(*(slot.statistic_scopes() for slot in self.feed_forward_at.values()))
