"""Fair peers: the paper's matched counts, every knob of every slot, and what cannot be matched."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import KINDS, tiny_config

from model.accounting import macs, stored_parameters
from model.config import ModelConfig
from model.errors import ModelError
from model.matching import Measure, match
from model.paper import DENSE_PEERS, GROUPS, PAPER, SIGMA_MOE

WINDOW = 16
FOUND = {"44M": 156, "126M": 254, "244M": 387, "319M": 340, "728M": 468, "1040M": 568}
LARGER = {"vocab_size": 61, "d_model": 36, "depth": {"group": 5, "repeats": 3}}


def with_experts(config: ModelConfig, n_experts: int) -> ModelConfig:
    return config.model_copy(update={"feed_forward": config.feed_forward.model_copy(update={"n_experts": n_experts})})


@pytest.mark.parametrize("size", PAPER)
def test_expert_counts_of_moeut(size: str) -> None:
    """The published counts give their own sizes back. Against the dense sizes they are the nearest at 126M and 244M; at the others
    the paper stays 1 to 3 experts, at most 0.4% of all parameters, below its dense peer."""
    start = with_experts(PAPER[size], 100)
    published = PAPER[size].feed_forward.n_experts
    again = match(start, PAPER[size], "params", WINDOW)
    assert (again.config, again.field, again.value) == (PAPER[size], "feed_forward.n_experts", published)
    assert again.got == again.wanted == stored_parameters(PAPER[size])
    found = match(start, DENSE_PEERS[size], "params", WINDOW)
    assert found.value == FOUND[size] and 0 <= found.value - published <= 3
    assert abs(stored_parameters(PAPER[size]) / found.wanted - 1) < 0.0045


@pytest.mark.parametrize("size", SIGMA_MOE)
def test_expert_counts_of_the_non_shared_baselines(size: str) -> None:
    found = match(with_experts(SIGMA_MOE[size], 100), DENSE_PEERS[size], "params", WINDOW)
    assert found.config == SIGMA_MOE[size]


@pytest.mark.parametrize("group", GROUPS)
def test_expert_counts_of_the_group_ablation(group: int) -> None:
    found = match(with_experts(GROUPS[group], 16), DENSE_PEERS["244M"], "params", WINDOW)
    assert found.config == GROUPS[group]


def nearest_by_hand(config: ModelConfig, target: int, by: Measure, field: str, step: int) -> int:
    """Every value from the smallest on, until far beyond."""
    sizes = {}
    for value in range(step, 4000, step):
        *slot, last = field.split(".")
        values = config.model_dump()
        (values[slot[0]] if slot else values)[last] = value
        try:
            changed = ModelConfig.model_validate(values)
        except ValueError:
            continue
        sizes[value] = stored_parameters(changed) if by == "params" else macs(changed, WINDOW).total
        if sizes[value] > 2 * target:
            break
    return min(sizes, key=lambda value: abs(sizes[value] - target))


@pytest.mark.parametrize("by", ["params", "macs"])
@pytest.mark.parametrize(
    ("kind", "params_field", "macs_field", "step"),
    [
        ("dense", "feed_forward.d_ff", "feed_forward.d_ff", 1),
        ("topk", "feed_forward.d_ff", "feed_forward.d_ff", 1),
        ("peri", "feed_forward.n_experts", "feed_forward.d_expert", 1),
        ("dense_ends", "feed_forward.n_experts", "feed_forward.d_expert", 1),
        ("pkm", "feed_forward.n_keys", "feed_forward.d_key", 2),
        ("peer", "feed_forward.n_keys", "feed_forward.d_key", 2),
    ],
)
def test_the_first_knob_that_gets_there(by: Measure, kind: str, params_field: str, macs_field: str, step: int) -> None:
    """sigma-MoE would first take more experts a token, but all 7 of them are too few here."""
    config, target = tiny_config(**KINDS[kind]), tiny_config(**LARGER)
    found = match(config, target, by, WINDOW)
    field, wanted = (params_field, stored_parameters(target)) if by == "params" else (macs_field, macs(target, WINDOW).total)
    assert (found.field, found.wanted) == (field, wanted)
    assert found.value == nearest_by_hand(config, wanted, by, field, step if by == "macs" else 1)
    assert found.got == (stored_parameters(found.config) if by == "params" else macs(found.config, WINDOW).total)


def test_experts_a_token_are_matched_by_macs() -> None:
    target = tiny_config(feed_forward={"kind": "sigma_moe", "n_experts": 7, "d_expert": 16, "top_k": 5})
    found = match(tiny_config(), target, "macs", WINDOW)
    assert (found.config, found.field, found.value, found.got) == (target, "feed_forward.top_k", 5, found.wanted)


def test_the_width_is_turned_where_no_knob_gets_there() -> None:
    """A dense model without any hidden unit is still larger than a narrow one."""
    narrow = tiny_config(**KINDS["dense"], d_model=12)
    found = match(tiny_config(**KINDS["dense"]), narrow, "params", WINDOW)
    assert found.field == "d_model" and found.value == 12 and found.config == narrow


def test_a_field_that_is_asked_for() -> None:
    config, target = tiny_config(**KINDS["one_peer"]), tiny_config(**LARGER)
    found = match(config, target, "params", WINDOW, field="feed_forward_at.1.n_keys")
    slot: Any = found.config.feed_forward_at[1]
    assert slot.n_keys == found.value and found.config.feed_forward == config.feed_forward
    assert match(config, target, "macs", WINDOW, field="depth.repeats").field == "depth.repeats"


@pytest.mark.parametrize(
    ("by", "field", "message"),
    [
        ("params", "feed_forward.d_f", "model.feed_forward.d_f is no field of this model; name a field that is a whole number"),
        ("params", "nowhere.deep", "model.nowhere.deep is no field"),
        ("params", "feed_forward_at.3.d_ff", "model.feed_forward_at.3.d_ff is no field"),
        ("params", "norm", "model.norm is 'peri'; name a field"),
        (
            "params",
            "feed_forward.top_k",
            "params cannot be matched: 86,425 wanted, but model.feed_forward.top_k gives at most 37,285",
        ),
        ("macs", "feed_forward.top_k", "model.feed_forward.top_k gives at most"),
        ("params", "depth.repeats", "model.depth.repeats leaves it at"),
    ],
)
def test_what_cannot_be_matched_is_said(by: Measure, field: str, message: str) -> None:
    with pytest.raises(ModelError) as fault:
        match(tiny_config(), tiny_config(**LARGER), by, WINDOW, field)
    assert message in str(fault.value)


def test_a_target_too_small_names_every_knob() -> None:
    smallest = tiny_config(vocab_size=2, d_model=1, feed_forward={"kind": "dense", "d_ff": 1})
    with pytest.raises(ModelError, match=r"n_experts gives at least .* \(at 3\); .*d_expert.*; model.d_model gives at least"):
        match(tiny_config(), smallest, "params", WINDOW)


def test_a_memory_is_not_turned_into_another_function() -> None:
    """Above 8 sub-keys a half it would pick some slots in place of reading all."""
    memory = {"kind": "pkm_halves", "n_keys": 5, "heads": 2, "top_k": 8}
    small, large = tiny_config(feed_forward=memory), tiny_config(feed_forward={"kind": "dense", "d_ff": 4000})
    with pytest.raises(ModelError, match=r"feed_forward.n_keys gives at most .* \(at 8\)"):
        match(small, large, "params", 16, "feed_forward.n_keys")
