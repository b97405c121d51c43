"""What a model is, as data: the `model:` part of a recipe.

Slots (`attention`, `feed_forward`, `residual`, `halting`) are filled by name: their `kind` picks the class that reads the other fields.
Symbols as in the MoEUT paper (arXiv 2405.16039): G layers in a group, R repeats, N_E and N_A experts, K and K_A chosen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.attention_config import DenseAttentionConfig, MomhaConfig, SwitchHeadConfig
from model.balance_config import BalanceTerm, Scope
from model.dense_config import DenseFeedForwardConfig, TopKConfig
from model.depth_config import DepthConfig
from model.halting_config import ActConfig, NoHaltingConfig, StickBreakingConfig
from model.moe_config import SBaseConfig, SigmaMoEConfig, SwitchConfig
from model.product_key_config import PeerConfig, PKMConfig, PKMHalvesConfig
from model.slot_config import Strict
from model.stream_config import AltUpConfig, SingleStreamConfig

Attention = Annotated[SwitchHeadConfig | DenseAttentionConfig | MomhaConfig, Field(discriminator="kind")]
FeedForward = Annotated[
    SigmaMoEConfig | SwitchConfig | SBaseConfig | DenseFeedForwardConfig | TopKConfig | PKMConfig | PKMHalvesConfig | PeerConfig,
    Field(discriminator="kind"),
]
Residual = Annotated[SingleStreamConfig | AltUpConfig, Field(discriminator="kind")]
Halting = Annotated[NoHaltingConfig | StickBreakingConfig | ActConfig, Field(discriminator="kind")]


class ModelConfig(Strict):
    """A decoder-only language model whose layers may be visited more than once."""

    vocab_size: int = Field(ge=2)
    """Rows of embedding and head; that of `data.tokenizer` where that is trained."""
    d_model: int = Field(ge=1)
    """Width of the residual stream."""
    depth: DepthConfig = DepthConfig()
    """Which layer is visited when."""
    attention: Attention
    """The attention of every layer."""
    feed_forward: FeedForward
    """The feed-forward of every layer that `feed_forward_at` does not name."""
    feed_forward_at: dict[int, FeedForward] = Field(default_factory=dict)
    """Another feed-forward for single layers, by layer number, with the kinds and fields of `feed_forward`: a memory in the middle of a
    dense model, a dense prelude before routed layers. Routed kinds (`sigma_moe`, `switch`, `s_base`) stand in `feed_forward` only."""
    residual: Residual = SingleStreamConfig()
    """The residual stream, or streams."""
    halting: Halting = NoHaltingConfig()
    """Whether a token may leave the recurrence before its last repeat, and who decides."""
    norm: Literal["peri", "pre", "post"] = "peri"
    """Where layer norms stand. `peri`, as in MoEUT: only queries, keys and routers read the normalised stream; `pre`: everything that
    attention and feed-forward read is normalised; `post`: the stream is, after every addition."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout of what attention and feed-forward add to the stream."""

    @model_validator(mode="after")
    def _other_slots_fit(self) -> ModelConfig:
        for layer, slot in self.feed_forward_at.items():
            if not 0 <= layer < self.depth.n_layers:
                raise ValueError(f"feed_forward_at names layer {layer}; choose one of 0..{self.depth.n_layers - 1}")
            # Counts of routes are one table, visits by experts.
            if slot.routed_experts:
                raise ValueError(
                    f"feed_forward_at.{layer} is '{slot.kind}', but routed experts must be as many in all layers that have them: make "
                    f"'{slot.kind}' the feed_forward and name the other layers in feed_forward_at"
                )
        if self.feed_forward.routed_experts and not self.routed_layers:
            raise ValueError(
                f"feed_forward is '{self.feed_forward.kind}', but feed_forward_at names all layers, 0..{self.depth.n_layers - 1}; leave "
                "out those that are to have experts"
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
        repeated = [layer for layer in range(self.depth.n_layers) if self.depth.is_repeated(layer)]
        has_router = self.attention.router_rows or set(repeated) & set(self.routed_layers)
        if "router" in self.depth.per_visit and not has_router:
            kinds = "', '".join(dict.fromkeys(self.feed_forward_of(layer).kind for layer in repeated))
            raise ValueError(
                f"depth.per_visit has 'router' but neither attention '{self.attention.kind}' nor feed_forward '{kinds}' of the repeated "
                "layers has one; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _halting_fits(self) -> ModelConfig:
        depth, kind = self.depth, self.halting.kind
        if kind == "none":
            return self
        if depth.prelude or depth.coda:
            raise ValueError(f"halting is '{kind}', but depth has prelude {depth.prelude} and coda {depth.coda}; make both 0")
        if depth.repeats < 2 or (depth.order == "loop" and depth.group > 1):
            raise ValueError(
                f"halting is '{kind}': a step is a pass over the group; give depth.repeats >= 2 (now {depth.repeats}) and order cycle"
            )
        if depth.backprop_repeats is not None or depth.sample is not None:
            raise ValueError(f"halting is '{kind}' and decides who takes which repeat; leave depth.backprop_repeats and depth.sample out")
        if self.residual.kind != "single":
            raise ValueError(f"halting is '{kind}': residual.kind must be single, not '{self.residual.kind}'")
        self._tokens_can_be_taken_out()
        return self

    def _tokens_can_be_taken_out(self) -> None:
        """What a pass over single tokens, whose keys and values others keep, cannot be."""
        kind = self.halting.kind
        if apart := [name for name in self.depth.per_visit if name != "residual_scale"]:
            raise ValueError(
                f"halting is '{kind}': keys and values of tokens that halted are kept for later visits, which depth.per_visit "
                f"{apart} would make differ; leave them out"
            )
        scopes = self.statistic_scopes()
        if scopes.get("feed_forward.choice_scope") == "sequence":
            raise ValueError(f"halting is '{kind}': a pass has single tokens, no sequences; set feed_forward.choice_scope to micro_batch")
        if batch_norms := [field for field in scopes if field.endswith("query_norm")]:
            raise ValueError(f"halting is '{kind}': late passes have too few tokens for {batch_norms[0]} 'batch'; set it to layer")

    def feed_forward_of(self, layer: int) -> FeedForward:
        """The slot of distinct layer `layer`."""
        return self.feed_forward_at.get(layer, self.feed_forward)

    @property
    def routed_layers(self) -> list[int]:
        """The distinct layers whose feed-forward has routed experts."""
        return [layer for layer in range(self.depth.n_layers) if self.feed_forward_of(layer).routed_experts]

    def routed_visits(self, repeats: int | None = None) -> dict[int, int]:
        """The visits of `routed_layers`, number -> layer, in the order of the numbers: the rows of a table of loads."""
        routed = set(self.routed_layers)
        return {number: layer for number, layer in enumerate(self.depth.layers_by_number(repeats)) if layer in routed}

    def balance_terms(self) -> dict[str, BalanceTerm]:
        """What the loss takes of the statistics of routing, by router name."""
        return self.feed_forward.balance_terms() | self.attention.balance_terms()

    @property
    def has_step_balance(self) -> bool:
        """Whether the loss has a regulariser of scope `step`, for which a step of several micro-batches begins with a second forward."""
        return any(term.weight and term.balance.scope == "step" for term in self.balance_terms().values())

    def statistic_scopes(self) -> dict[str, Scope]:
        """Over what statistics of routing, and of queries, are taken: by the dotted field below the model that says so."""
        slots: dict[str, FeedForward] = {"feed_forward": self.feed_forward}
        slots |= {f"feed_forward_at.{layer}": slot for layer, slot in self.feed_forward_at.items()}
        found = {f"{place}.{field}": scope for place, slot in slots.items() for field, scope in slot.statistic_scopes().items()}
        terms = self.attention.balance_terms()
        return found | ({"attention.balance.scope": next(iter(terms.values())).balance.scope} if terms else {})
