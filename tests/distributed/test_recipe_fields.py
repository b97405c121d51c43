"""The fields of a recipe with their words: that none is left out, and what a person reads of them."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_fields import Group, groups_below, words_of
from distributed.recipe_types import type_text
from model.config import ModelConfig
from model.depth_config import DepthConfig
from model.moe_config import SigmaMoEConfig, SwitchConfig
from model.product_key_config import PKMConfig, PKMHalvesConfig


def field_of(model: Any, name: str) -> str:
    """The type of a model's field as a person reads it."""
    return type_text(model.model_fields[name].annotation, model.model_fields[name].metadata)


def kinds_at(path: str, groups: list[Group]) -> list[str]:
    """The kinds of a slot in the order of the listing."""
    return [kind for group in groups if group.path == path for kind in group.kinds]


def test_every_field_and_every_kind_has_words() -> None:
    groups = groups_below()
    without = [f"{group.path}.{field.name}" for group in groups for field in group.fields if not field.words.endswith(".")]
    assert not without and all(group.words.endswith(".") for group in groups)


def test_no_field_and_no_kind_of_the_schema_is_left_out() -> None:
    schema = Recipe.model_json_schema()
    groups = groups_below()
    named = {frozenset({field.name for field in group.fields} | ({"kind"} if group.kinds else set())) for group in groups}
    kinds = {kind for group in groups for kind in group.kinds}
    for model, holder in {**schema["$defs"], "Recipe": schema}.items():
        assert frozenset(holder["properties"]) in named, model
        kind = holder["properties"].get("kind", {})
        assert kind.get("const", "none") in kinds and (model != "AltUpConfig" or set(kind["enum"]) <= kinds)


def test_kinds_of_slots_stand_in_the_type_and_as_groups() -> None:
    groups = groups_below("model.feed_forward")
    (slot,) = groups[0].fields
    assert slot.type == "sigma_moe | switch | s_base | dense | topk | pkm | pkm_halves | peer"
    assert " | ".join(kinds_at("model.feed_forward", groups)) == slot.type
    assert kinds_at("model.feed_forward.balance", groups) == ["entropy", "switch", "mim", "bias", "none"]
    assert kinds_at("model.residual", groups_below("model.residual.kind")) == ["single", "altup", "recycled_altup"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (field_of(DepthConfig, "residual_scale"), "number > 0 | 1/R | 1/sqrt(R)"),
        (field_of(DepthConfig, "sample"), "uniform | poisson_lognormal | null"),
        (field_of(DepthConfig, "per_visit"), "[router | norm | embedding | residual_scale, ...]"),
        (field_of(DepthConfig, "backprop_repeats"), "integer >= 1 | null"),
        (field_of(ModelConfig, "dropout"), "number >= 0, < 1"),
        (field_of(ModelConfig, "feed_forward_at"), "{integer: fields}"),
        (field_of(ModelConfig, "depth"), "fields"),
        (field_of(PKMConfig, "d_key"), "integer >= 2, a multiple of 2"),
        (type_text(tuple[float, float]), "[number, number]"),
        (type_text(list[str] | None), "[text, ...] | null"),
        (type_text(bool | None), "true | false | null"),
        (type_text(Literal[1, 2]), "1 | 2"),
    ],
)
def test_types(text: str, expected: str) -> None:
    assert text == expected


def test_words_of_a_base_hold_until_a_kind_has_its_own() -> None:
    assert words_of(SwitchConfig, "top_k") == words_of(SigmaMoEConfig, "top_k") == "Experts that a token chooses (K)."
    assert words_of(PKMConfig, "top_k") != words_of(PKMHalvesConfig, "top_k")
    assert "`n_keys` or more" in words_of(PKMHalvesConfig, "top_k")


def test_defaults_are_those_of_the_kind() -> None:
    def default(kind: str, field: str) -> str:
        (group,) = (group for group in groups_below("model.feed_forward") if (group.path, group.kinds) == ("model.feed_forward", (kind,)))
        return next(one.default for one in group.fields if one.name == field)

    assert [default(kind, "balance") for kind in ("sigma_moe", "switch", "s_base")] == ["entropy", "switch", "none"]
    assert [default(kind, "top_k") for kind in ("sigma_moe", "switch")] == ["required", "1"]
    assert (default("switch", "router_hidden"), default("peer", "glu")) == ("null", "false")


def test_a_prefix_is_a_field_and_what_is_below_it() -> None:
    assert [group.path for group in groups_below("train")] == ["", "train", "train.schedule"]
    assert [[group.dotted(field) for field in group.fields] for group in groups_below("train.lr")] == [["train.lr"]]
    assert groups_below("data.sources.0.path") == groups_below("data.sources.N.path")


@pytest.mark.parametrize(
    ("prefix", "meant"),
    [
        ("halting", "did you mean model.halting?"),
        ("dept", "did you mean model.depth?"),
        ("model.halt", "did you mean model.halting?"),
        ("zero_stage", "did you mean train.zero_stage?"),
        ("train.zero_stagge", "did you mean train.zero_stage?"),
        ("xyzzy", "the first words are name, seed, model"),
    ],
)
def test_an_unknown_prefix_is_answered_with_near_names(prefix: str, meant: str) -> None:
    with pytest.raises(RunError) as fault:
        groups_below(prefix)
    assert f"'{prefix}'" in str(fault.value) and meant in str(fault.value)
