"""What each part of a model adds to its sizes and costs: a row a part, and the rows add up to the whole (`model.accounting`)."""

from __future__ import annotations

from dataclasses import dataclass

from model.accounting import kv_cache_bytes, macs, parameters, weight_bytes_read
from model.config import ModelConfig


@dataclass(frozen=True)
class PartSize:
    """A part's share.

    Attributes:
        part: `embedding`, `attention`, `feed_forward`, `head`, `other` (norms, what mixes residual streams, halting gates, and what visits
            have for themselves) or `total`.
        kind: what fills the slot; empty where there is none.
        layers, visits: distinct layers that have it, and a token's passes through it.
        stored, unrolled, active: parameters, as in `model.accounting.Parameters`.
        macs: exact multiply-accumulates of one token's forward pass in windows of `seq_len`.
        weight_bytes: weights that one token's forward pass reads, of a bank or a table only what it chose.
        kv_bytes: key/value cache of one token.
    """

    part: str
    kind: str
    layers: int
    visits: int
    stored: int
    unrolled: int
    active: int
    macs: int
    weight_bytes: int
    kv_bytes: int = 0


def part_sizes(config: ModelConfig, seq_len: int, bytes_per_number: int) -> list[PartSize]:
    """A row for every part, one for every kind of feed-forward, the total last.

    Args:
        seq_len: tokens of a window; attention's scores cost more in longer ones.
        bytes_per_number: of weights and cache: 2 in bfloat16.
    """
    known = [_embedding(config, bytes_per_number), _attention(config, seq_len, bytes_per_number)]
    known += [*_feed_forwards(config, bytes_per_number), _head(config, bytes_per_number)]
    whole, layers, visits = parameters(config), config.depth.n_layers, config.depth.n_visits
    amounts = (whole.stored, whole.unrolled, whole.active, macs(config, seq_len).total // seq_len)
    total = (*amounts, weight_bytes_read(config, bytes_per_number), kv_cache_bytes(config, 1, bytes_per_number))
    columns = ("stored", "unrolled", "active", "macs", "weight_bytes", "kv_bytes")
    other = [amount - sum(getattr(row, name) for row in known) for name, amount in zip(columns, total, strict=True)]
    return [*known, PartSize("other", "", layers, visits, *other), PartSize("total", "", layers, visits, *total)]


def _embedding(config: ModelConfig, bytes_per_number: int) -> PartSize:
    row = _width(config)
    count = config.vocab_size * row
    return PartSize("embedding", "", 0, 1, count, count, row, 0, row * bytes_per_number)


def _head(config: ModelConfig, bytes_per_number: int) -> PartSize:
    matrix = config.vocab_size * _width(config)
    count = matrix + config.vocab_size
    return PartSize("head", "", 0, 1, count, count, count, matrix, count * bytes_per_number)


def _width(config: ModelConfig) -> int:
    """Numbers in a row of the embedding and of the head."""
    return macs(config, 1).head // config.vocab_size


def _attention(config: ModelConfig, seq_len: int, bytes_per_number: int) -> PartSize:
    stored, active = config.attention.parameters(config.d_model)
    layers, visits = config.depth.n_layers, config.depth.n_visits
    counts = (layers * stored, visits * stored, visits * active, macs(config, seq_len).attention // seq_len)
    cache = kv_cache_bytes(config, 1, bytes_per_number)
    return PartSize("attention", config.attention.kind, layers, visits, *counts, visits * active * bytes_per_number, cache)


def _feed_forwards(config: ModelConfig, bytes_per_number: int) -> list[PartSize]:
    """A row a distinct slot, in the order of the layers."""
    slots = [config.feed_forward_of(layer) for layer in range(config.depth.n_layers)]
    rows = []
    for slot in dict.fromkeys(slots):
        count, visits = slot.parameters(config.d_model), sum(slots[layer] == slot for layer in config.depth.schedule())
        counts = (slots.count(slot) * count.stored, visits * count.stored, visits * count.active)
        cost = visits * slot.macs(config.d_model, exact=True)
        rows.append(PartSize("feed_forward", slot.kind, slots.count(slot), visits, *counts, cost, counts[2] * bytes_per_number))
    return rows
