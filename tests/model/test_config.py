"""The depth schedule, and what a configuration refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tiny_models import tiny_config

from model.attention_config import SwitchHeadConfig
from model.depth_config import DepthConfig
from model.moe_config import SigmaMoEConfig


@pytest.mark.parametrize(
    ("depth", "schedule"),
    [
        ({"group": 2, "repeats": 3}, [0, 1, 0, 1, 0, 1]),
        ({"group": 2, "repeats": 3, "order": "loop"}, [0, 0, 0, 1, 1, 1]),
        ({"prelude": 1, "group": 2, "repeats": 2, "coda": 2}, [0, 1, 2, 1, 2, 3, 4]),
        ({"group": 4, "repeats": 1}, [0, 1, 2, 3]),
    ],
)
def test_the_schedule_names_the_layer_of_every_visit(depth: dict, schedule: list[int]) -> None:
    config = DepthConfig(**depth)
    assert config.schedule() == schedule
    assert config.n_visits == len(schedule) and config.n_layers == len(set(schedule))


def test_more_choices_than_experts_are_refused() -> None:
    with pytest.raises(ValidationError, match="top_k is 4 but there are 3 experts; choose top_k <= 3"):
        SigmaMoEConfig(n_experts=3, top_k=4)
    with pytest.raises(ValidationError, match="top_k is 4 but a head has 3 experts"):
        SwitchHeadConfig(n_heads=2, d_head=8, n_experts=3, top_k=4)
    assert SwitchHeadConfig(n_heads=2, d_head=8, n_experts=1).top_k == 2  # unused with one expert


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="n_expert"):
        tiny_config(feed_forward={"kind": "sigma_moe", "n_expert": 3, "n_experts": 3, "top_k": 1})


STICK, MEMORY = {"halting": {"kind": "stick_breaking"}}, {"kind": "pkm", "n_keys": 4, "heads": 1, "top_k": 2, "d_key": 4}
ROUTED = {"kind": "sigma_moe", "n_experts": 5, "top_k": 1}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({**STICK, "depth": {"per_visit": ["norm", "residual_scale"]}}, r"depth.per_visit \['norm'\] would make differ; leave them out"),
        (
            {**STICK, "feed_forward": {**ROUTED, "kind": "s_base", "choice_scope": "sequence"}},
            "set feed_forward.choice_scope to micro_batch",
        ),
        (
            {**STICK, "feed_forward": {**MEMORY, "query_norm": "batch"}},
            "too few tokens for feed_forward.query_norm 'batch'; set it to layer",
        ),
        ({**STICK, "depth": {"sample": {"kind": "uniform", "max": 9}}}, "leave depth.backprop_repeats and depth.sample out"),
        ({"feed_forward": {**ROUTED, "renormalise": True}}, "always 1 and teaches the router nothing; set top_k to 2 or more"),
        ({"feed_forward": {**ROUTED, "score": "softmax", "softmax_over": "chosen"}}, "always 1 and teaches the router nothing"),
        (
            {"attention": {"kind": "momha", "n_heads": 1, "d_head": 4, "n_experts": 3, "top_k": 1}},
            "teaches the router nothing; set top_k to 2",
        ),
    ],
)
def test_combinations_that_would_compute_something_else_are_refused(fields: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        tiny_config(**fields)


def test_scopes_are_told_by_the_field_that_says_so() -> None:
    layers = {"feed_forward": {"kind": "dense", "d_ff": 8}, "feed_forward_at": {1: {**MEMORY, "query_norm": "batch"}}}
    assert tiny_config(**layers).statistic_scopes() == {
        "feed_forward_at.1.query_norm": "micro_batch",
        "attention.balance.scope": "sequence",
    }
