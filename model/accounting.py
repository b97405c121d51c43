"""Exact sizes and costs of a model, worked out from its configuration alone: parameters, multiply-accumulates, cache bytes.

MACs come in two forms. `published` is the count of the MoEUT authors (RobertCsordas/moeut_training_code @a0f771a,
paper/moe_universal/common.py), which forgets that every head has its own routers (0.7-1.0% of the total) and leaves out the
weighting of feed-forward results. `exact` counts all products. Neither deducts what a causal mask saves.

Symbols: d model width, H heads, h head width, N_A and N_E experts, K_A and K chosen, F expert width, T tokens, V vocabulary;
K streams where the residual is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.attention_config import DenseAttentionConfig
from model.config import Attention, ModelConfig, Residual
from model.stream_config import AltUpConfig


@dataclass(frozen=True)
class Parameters:
    """Parameter counts.

    Attributes:
        stored: in memory and in a checkpoint.
        layers: of these, in the distinct layers (x axis of the paper's Fig. 4a).
        unrolled: a layer counted once a visit: the size of the same computation without sharing.
        active: met by one token on its way, every visit counted, of a bank only the experts chosen, of the embedding one row.
    """

    stored: int
    layers: int
    unrolled: int
    active: int


@dataclass(frozen=True)
class MACs:
    """Multiply-accumulates of a forward pass over one sequence, all visits together.

    Attributes:
        residual: predicting and correcting residual streams, and scaling what layers add to them; 0 with a single one as it is.
    """

    attention: int
    feed_forward: int
    residual: int
    head: int

    @property
    def body(self) -> int:
        """Without embedding and head: what the paper counts."""
        return self.attention + self.feed_forward + self.residual

    @property
    def total(self) -> int:
        return self.body + self.head


def parameters(config: ModelConfig) -> Parameters:
    """Counts of `config`, to the unit."""
    d, vocabulary = config.d_model, config.vocab_size
    attention, attention_active = _attention_parameters(config.attention, d)
    feed_forward = [config.feed_forward_of(layer).parameters(d) for layer in range(config.depth.n_layers)]
    copies, mixing = _copies(config), _mixing_parameters(config.residual, d)
    depth, added = config.depth, _added_parameters(config)
    outside = copies * vocabulary * d + vocabulary + 2 * d
    more = (depth.most_repeats - 1) * _separate_parameters(config) + depth.most_repeats * added
    layers = sum(attention + slot.stored + 4 * d for slot in feed_forward) + depth.group * more
    schedule = depth.schedule()
    by_layer = isinstance(config.residual, AltUpConfig) and config.residual.coefficients == "layer"
    sets = depth.n_layers if by_layer else depth.n_numbers()
    added_in_all = depth.group * depth.repeats * added
    return Parameters(
        stored=layers + copies * vocabulary * d + outside + sets * mixing,
        layers=layers,
        unrolled=sum(attention + feed_forward[layer].stored + 4 * d + mixing for layer in schedule)
        + added_in_all
        + copies * vocabulary * d
        + outside,
        active=sum(attention_active + feed_forward[layer].active + 4 * d + mixing for layer in schedule)
        + added_in_all
        + copies * d
        + outside,
    )


def stored_parameters(config: ModelConfig) -> int:
    """How many parameters a checkpoint of `config` holds."""
    return parameters(config).stored


def macs(config: ModelConfig, n_tokens: int, form: Literal["published", "exact"] = "exact", repeats: int | None = None) -> MACs:
    """Forward multiply-accumulates over one sequence of `n_tokens`; spec formulas per visit, times the visits.

    `repeats`: how often a pass goes through the group; None: as configured.
    """
    exact = form == "exact"
    schedule = config.depth.schedule(repeats)
    visits = len(schedule)
    return MACs(
        attention=visits * _attention_macs(config.attention, config.d_model, n_tokens, exact),
        feed_forward=n_tokens * sum(config.feed_forward_of(layer).macs(config.d_model, exact) for layer in schedule),
        residual=(visits * _mixing_macs(config.residual, config.d_model) + _scaling_macs(config, schedule)) * n_tokens,
        head=_copies(config) * config.d_model * config.vocab_size * n_tokens,
    )


def macs_per_token(config: ModelConfig, seq_len: int, repeats: int | None = None) -> float:
    """Exact multiply-accumulates of one token's forward pass in windows of `seq_len`, the head included."""
    return macs(config, seq_len, repeats=repeats).total / seq_len


def kv_cache_bytes(config: ModelConfig, n_tokens: int, bytes_per_number: int) -> int:
    """Bytes of the key/value cache of one sequence at the configured repeats: one key and one value a visit, not a layer."""
    attention = config.attention
    return config.depth.n_visits * 2 * attention.n_heads * attention.d_head * n_tokens * bytes_per_number


def _copies(config: ModelConfig) -> int:
    """Model widths in a row of the embedding and of the head."""
    return config.residual.streams if config.residual.kind == "altup" else 1


def _mixing_parameters(residual: Residual, d: int) -> int:
    """Of one set of coefficients; routed ones have a norm, a router and a matrix of K rows or columns for each."""
    if not isinstance(residual, AltUpConfig):
        return 0
    numbers = residual.streams**2 + residual.streams
    return d + residual.streams * d + numbers * residual.streams if residual.routed else numbers


def _separate_parameters(config: ModelConfig) -> int:
    """Of what a layer of the group has anyway: that of which every visit has its own."""
    d, own = config.d_model, config.depth.per_visit
    routers = (config.attention.router_rows + config.feed_forward.routed_experts) * d
    return ("router" in own) * routers + ("norm" in own) * 4 * d


def _added_parameters(config: ModelConfig) -> int:
    """Of a visit, beside what layers have without depth switches."""
    own = config.depth.per_visit
    return ("embedding" in own) * config.d_model + ("residual_scale" in own)


def _scaling_macs(config: ModelConfig, schedule: list[int]) -> int:
    """Of one token: both contributions of every visit of the group, where they are scaled."""
    scaled = config.depth.residual_scale != 1.0 or "residual_scale" in config.depth.per_visit
    return scaled * 2 * config.d_model * sum(map(config.depth.is_repeated, schedule))


def _mixing_macs(residual: Residual, d: int) -> int:
    """K^2 to predict; to correct K, and as many for each stream's distance from the active one; a router is read twice."""
    if not isinstance(residual, AltUpConfig):
        return 0
    k = residual.streams
    return (k**2 + 2 * k) * d + ((2 * d + k**2 + k) * k if residual.routed else 0)


def _attention_parameters(attention: Attention, d: int) -> tuple[int, int]:
    """All, and those one token meets."""
    projection = d * attention.n_heads * attention.d_head
    if isinstance(attention, DenseAttentionConfig):
        return 4 * projection, 4 * projection
    if attention.n_experts == 1 and attention.single_expert == "output_gate":
        gated = 4 * projection + attention.n_heads * d
        return gated, gated
    top_k = min(attention.top_k, attention.n_experts)
    always = 2 * projection + 2 * attention.n_heads * attention.n_experts * d
    return always + 2 * attention.n_experts * projection, always + 2 * top_k * projection


def _attention_macs(attention: Attention, d: int, n_tokens: int, exact: bool) -> int:
    heads_width = attention.n_heads * attention.d_head
    scores = 2 * heads_width * n_tokens**2
    if isinstance(attention, DenseAttentionConfig):
        return scores + 4 * d * heads_width * n_tokens
    if attention.n_experts == 1 and attention.single_expert == "output_gate":  # not in the authors' count: always exact
        return scores + 4 * d * heads_width * n_tokens + (d * attention.n_heads + heads_width) * n_tokens
    top_k = min(attention.top_k, attention.n_experts)
    routers = 2 * attention.n_experts * d * n_tokens * (attention.n_heads if exact else 1)
    return scores + (2 * top_k + 2) * d * heads_width * n_tokens + 2 * top_k * heads_width * n_tokens + routers
