"""A fair peer: the whole number for one field that brings a model to another's parameters or multiply-accumulates.

Parameters are matched by the number of experts (arXiv 2405.16039 section 3), operations (of a pass of `depth.repeats` in which no
token halts) by what a token passes through. A count cannot be met exactly: the nearest whole number is taken, the smaller where two
are as near.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from model.accounting import macs, stored_parameters
from model.attention_config import DenseAttentionConfig
from model.config import ModelConfig
from model.dense_config import DenseFeedForwardConfig
from model.depth_config import DepthConfig
from model.errors import ModelError

Measure = Literal["params", "macs"]


@dataclass(frozen=True)
class Matched:
    """A model brought to another's size.

    Attributes:
        config: the model with `field` changed to `value`.
        field: dotted, below the model: `feed_forward.n_experts`.
        wanted, got: stored parameters, or exact multiply-accumulates of a forward pass over one window, of the target and of `config`.
    """

    config: ModelConfig
    field: str
    value: int
    wanted: int
    got: int


def match(config: ModelConfig, target: ModelConfig, by: Measure, seq_len: int, field: str | None = None) -> Matched:
    """`config` with one field changed so that it is as large (`params`) or as costly (`macs`) as `target`.

    Args:
        seq_len: tokens of a window, for `macs`.
        field: the field to change; None: the first of the slots' knobs that gets there, then `d_model`.

    Raises:
        ModelError: no such field, it is no whole number, or no value of it gets there.
    """
    wanted = _measure(target, by, seq_len)
    refusals = []
    for name in [field] if field else _knobs(config, by):
        found = _solve(config, name, lambda changed: _measure(changed, by, seq_len), wanted)
        if isinstance(found, Matched):
            return found
        refusals.append(found)
    raise ModelError(f"{by} cannot be matched: {wanted:,} wanted, but " + "; ".join(refusals))


def dense_peer(config: ModelConfig) -> ModelConfig:
    """The dense Transformer beside `config`, its `feed_forward.d_ff` still to be matched: as many layers as visits, none of them shared,
    pre-layernorm, heads of at least 64 that share the width (as the peers of arXiv 2405.16039 table 3 are, but for their heads).
    """
    heads = max(1, config.d_model // 64)
    return ModelConfig(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        depth=DepthConfig(group=config.depth.n_visits, repeats=1),
        attention=DenseAttentionConfig(n_heads=heads, d_head=config.d_model // heads),
        feed_forward=DenseFeedForwardConfig(d_ff=4 * config.d_model),
        norm="pre",
        dropout=config.dropout,
    )


def _measure(config: ModelConfig, by: Measure, seq_len: int) -> int:
    return stored_parameters(config) if by == "params" else macs(config, seq_len).total


def _knobs(config: ModelConfig, by: Measure) -> list[str]:
    """Fields to try: of the feed-forward, of those that single layers have, and the width of all."""
    places = {"feed_forward": config.feed_forward}
    places |= {f"feed_forward_at.{layer}": slot for layer, slot in config.feed_forward_at.items()}
    turned = {place: slot.params_knobs if by == "params" else slot.macs_knobs for place, slot in places.items()}
    return [f"{place}.{knob}" for place, knobs in turned.items() for knob in knobs] + ["d_model"]


def _solve(config: ModelConfig, field: str, measure: Callable[[ModelConfig], int], wanted: int) -> Matched | str:
    """The model with the value of `field` that comes nearest to `wanted`, or why none reaches it.

    Between a value that stays below and the next, which does not, lies what is wanted; values that the model refuses count as too
    small below the present one and as too large above it. So the field need not be monotone: the answer is a crossing.
    """
    present, step = _whole_number(config, field)
    start = present // step

    def measured(count: int) -> int | None:
        changed = _changed(config, field, count * step)
        return None if changed is None else measure(changed)

    def below(count: int) -> bool:
        size = measured(count)
        return count < start if size is None else size <= wanted

    low, high = -1, start + 1
    while below(high):
        if measured(2 * high) == measured(high):
            return f"model.{field} leaves it at {measured(high):,}"
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) else (low, middle)
    sizes = {count: size for count in (low, high) if (size := measured(count)) is not None}
    nearest = min(sizes, key=lambda count: abs(sizes[count] - wanted))
    if len(sizes) < 2 and sizes[nearest] != wanted:
        end = "at most" if sizes[nearest] < wanted else "at least"
        return f"model.{field} gives {end} {sizes[nearest]:,} (at {nearest * step})"
    matched = _changed(config, field, nearest * step)
    assert matched is not None
    return Matched(matched, field, nearest * step, wanted, sizes[nearest])


def _whole_number(config: ModelConfig, field: str) -> tuple[int, int]:
    """The field's present value, and the number that its values must be multiples of."""
    *parents, last = field.split(".")
    place: Any = config
    for name in parents:
        place = place.get(int(name)) if isinstance(place, dict) and name.isdigit() else getattr(place, name, None)
    value = getattr(place, last, None)
    if not isinstance(place, BaseModel) or type(value) is not int:
        said = f"is {value!r}" if isinstance(place, BaseModel) and last in type(place).model_fields else "is no field of this model"
        raise ModelError(f"model.{field} {said}; name a field that is a whole number, such as feed_forward.d_ff")
    rules = type(place).model_fields[last].metadata
    return value, next((rule.multiple_of for rule in rules if hasattr(rule, "multiple_of")), 1)


def _changed(config: ModelConfig, field: str, value: int) -> ModelConfig | None:
    """`config` with `field` set to `value`; None where the model refuses it."""
    values = config.model_dump()
    place: Any = values
    *parents, last = field.split(".")
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    try:
        changed = ModelConfig.model_validate(values)
    except ValidationError:
        return None
    return changed if _forms(changed) == _forms(config) else None


def _forms(config: ModelConfig) -> list[bool]:
    """Of every layer whether it chooses: a `pkm_halves` that reads all its slots is another function than one that does not."""
    return [config.feed_forward_of(layer).candidates > 0 for layer in range(config.depth.n_layers)]
