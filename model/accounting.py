"""Exact sizes and costs of a model, worked out from its configuration alone: parameters, multiply-accumulates, bytes.

MACs come in two forms. `published` is the count of the MoEUT authors (RobertCsordas/moeut_training_code @a0f771a,
paper/moe_universal/common.py), which forgets that every head has its own routers (0.7-1.0% of the total) and leaves out the
weighting of feed-forward results. `exact` counts all products. Neither deducts what a causal mask saves.

Symbols: d model width, H heads, h head width, N_A and N_E experts, K_A and K chosen, F expert width, T tokens, V vocabulary;
K streams where the residual is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.config import Attention, ModelConfig, Residual
from model.halting_config import Computed
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
        halting: the gates.
    """

    attention: int
    feed_forward: int
    residual: int
    head: int
    halting: int = 0

    @property
    def body(self) -> int:
        """Without embedding and head: what the paper counts."""
        return self.attention + self.feed_forward + self.residual + self.halting

    @property
    def total(self) -> int:
        return self.body + self.head


def parameters(config: ModelConfig) -> Parameters:
    """Counts of `config`, to the unit."""
    d, vocabulary = config.d_model, config.vocab_size
    attention, attention_active = config.attention.parameters(d)
    feed_forward = [config.feed_forward_of(layer).parameters(d) for layer in range(config.depth.n_layers)]
    copies, mixing = _copies(config), _mixing_parameters(config.residual, d)
    depth, added = config.depth, _added_parameters(config)
    outside = copies * vocabulary * d + vocabulary + 2 * d
    more = (depth.most_repeats - 1) * _separate_parameters(config) + depth.group * depth.most_repeats * added
    layers = sum(attention + slot.stored + 4 * d for slot in feed_forward) + more
    schedule = depth.schedule()
    by_layer = isinstance(config.residual, AltUpConfig) and config.residual.coefficients == "layer"
    sets = depth.n_layers if by_layer else depth.n_numbers()
    every_visit = depth.group * depth.repeats * added + config.halting.gates(depth.repeats) * config.halting.parameters(d)
    return Parameters(
        stored=layers + copies * vocabulary * d + outside + config.halting.parameters(d) + sets * mixing,
        layers=layers,
        unrolled=sum(attention + feed_forward[layer].stored + 4 * d + mixing for layer in schedule)
        + every_visit
        + copies * vocabulary * d
        + outside,
        active=sum(attention_active + feed_forward[layer].active + 4 * d + mixing for layer in schedule)
        + every_visit
        + copies * d
        + outside,
    )


def stored_parameters(config: ModelConfig) -> int:
    """How many parameters a checkpoint of `config` holds."""
    return parameters(config).stored


def macs(config: ModelConfig, n_tokens: int, form: Literal["published", "exact"] = "exact", repeats: int | None = None) -> MACs:
    """Forward multiply-accumulates over one sequence of `n_tokens` of which none halts: its slots' per visit, times the visits.

    `repeats`: how often a pass goes through the group; None: as configured.
    """
    exact = form == "exact"
    schedule, attention = config.depth.schedule(repeats), config.attention
    visits = len(schedule)
    return MACs(
        attention=visits * n_tokens * (_score_macs(attention, n_tokens) + sum(attention.macs(config.d_model, exact))),
        feed_forward=n_tokens * sum(config.feed_forward_of(layer).macs(config.d_model, exact) for layer in schedule),
        residual=(visits * _mixing_macs(config.residual, config.d_model) + _scaling_macs(config, schedule)) * n_tokens,
        head=_copies(config) * config.d_model * config.vocab_size * n_tokens,
        halting=config.halting.gates(repeats or config.depth.repeats) * config.halting.macs(config.d_model) * n_tokens,
    )


def executed_macs(config: ModelConfig, computed: Sequence[Computed], n_tokens: int, n_sequences: int, repeats: int | None = None) -> MACs:
    """Exact forward multiply-accumulates over a batch of sequences of `n_tokens`, from the tokens that every visit computed.

    Where none halts this is `macs` times the sequences. A query is counted against all `n_tokens` keys, and those that pad a
    sequence's queries to the longest of the batch are not counted.
    """
    attention, d = config.attention, config.d_model
    of_keys, of_queries = attention.macs(d, exact=True)
    of_queries += _score_macs(attention, n_tokens)
    whole = macs(config, n_tokens, repeats=repeats)
    # Tokens halt beside a single stream only, of which nothing is computed but the scale of what layers add.
    halts = config.halting.kind != "none"
    residual = _scaled(config) * 2 * d * sum(visit.queries for visit in computed) if halts else n_sequences * whole.residual
    return MACs(
        attention=sum(visit.keys * of_keys + visit.queries * of_queries for visit in computed),
        feed_forward=sum(
            visit.queries * config.feed_forward_of(layer).macs(d, True)
            for layer, visit in zip(config.depth.schedule(repeats), computed, strict=True)
        ),
        residual=residual,
        head=n_sequences * whole.head,
        halting=sum(visit.gates for visit in computed) * config.halting.macs(d),
    )


def macs_per_token(config: ModelConfig, seq_len: int, repeats: int | None = None) -> float:
    """Exact multiply-accumulates of one token's forward pass in windows of `seq_len`, the head included."""
    return macs(config, seq_len, repeats=repeats).total / seq_len


def train_flops_per_token(config: ModelConfig, seq_len: int, repeats: int | None = None) -> float:
    """Operations of one token's training step: two a multiply-accumulate forward, four backward where a visit has gradients."""
    whole, depth, d = macs(config, seq_len, repeats=repeats), config.depth, config.d_model
    constant = [place.layer for place in depth.visits(repeats) if depth.is_constant(place.layer, place.repeat, repeats or depth.repeats)]
    attention = len(constant) * (_score_macs(config.attention, seq_len) + sum(config.attention.macs(d, True)))
    without = attention + sum(config.feed_forward_of(layer).macs(d, True) for layer in constant)
    return 6 * whole.total / seq_len - 4 * without


def kv_cache_bytes(config: ModelConfig, n_tokens: int, bytes_per_number: int) -> int:
    """Bytes of the key/value cache of one sequence at the configured repeats: one key and one value a visit, not a layer."""
    attention = config.attention
    return config.depth.n_visits * 2 * attention.n_heads * attention.d_head * n_tokens * bytes_per_number


def weight_bytes_read(config: ModelConfig, bytes_per_number: int) -> int:
    """Bytes of weights that one token's forward pass reads: its active parameters, a shared layer again at every visit.

    A batch reads fewer a token, since its tokens share what is not chosen; this figure is of no batch and bounds decoding.
    """
    return parameters(config).active * bytes_per_number


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
    """Of what the group's layers have anyway: that of which every visit has its own."""
    d, depth, own = config.d_model, config.depth, config.depth.per_visit
    slots = [config.feed_forward_of(layer) for layer in range(depth.n_layers) if depth.is_repeated(layer)]
    routers = sum(config.attention.router_rows * d + slot.router_weights(d) for slot in slots)
    return ("router" in own) * routers + ("norm" in own) * depth.group * 4 * d


def _added_parameters(config: ModelConfig) -> int:
    """Of a visit, beside what layers have without depth switches."""
    own = config.depth.per_visit
    return ("embedding" in own) * config.d_model + ("residual_scale" in own)


def _scaled(config: ModelConfig) -> bool:
    return config.depth.residual_scale != 1.0 or "residual_scale" in config.depth.per_visit


def _scaling_macs(config: ModelConfig, schedule: list[int]) -> int:
    """Of one token: both contributions of every visit of the group, where they are scaled."""
    return _scaled(config) * 2 * config.d_model * sum(map(config.depth.is_repeated, schedule))


def _mixing_macs(residual: Residual, d: int) -> int:
    """K^2 to predict; to correct K, and as many for each stream's distance from the active one; a router is read twice."""
    if not isinstance(residual, AltUpConfig):
        return 0
    k = residual.streams
    return (k**2 + 2 * k) * d + ((2 * d + k**2 + k) * k if residual.routed else 0)


def _score_macs(attention: Attention, n_tokens: int) -> int:
    """Of one token: its queries' products with all keys, and their sums of all values."""
    return 2 * attention.query_heads * attention.d_head * n_tokens
