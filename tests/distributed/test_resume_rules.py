"""The written list of what resume may change."""

from __future__ import annotations

import pytest

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.resume_rules import MAY_CHANGE, check_overrides, may_change


@pytest.mark.parametrize("field", ["train.steps", "checkpoint.every", "validation.windows", "cluster.workers", "data.loader_workers"])
def test_allowed(field: str) -> None:
    check_overrides([f"{field}=3"])


@pytest.mark.parametrize(
    "field",
    ["train.lr", "train.global_batch", "model.d_model", "model.depth.group", "data.seq_len", "seed", "name", "trains.steps", "train"],
)
def test_refused_with_the_list(field: str) -> None:
    with pytest.raises(RunError) as refusal:
        check_overrides(["train.steps=3", f"{field}=3"])
    assert f"resume cannot change {field}:" in str(refusal.value)
    assert all(entry in str(refusal.value) for entry in MAY_CHANGE)


def test_the_list_names_fields_that_exist() -> None:
    for entry in MAY_CHANGE:
        group, _, field = entry.partition(".")
        part = Recipe.model_fields[group].annotation
        assert part is not None and (field == "*" or field in part.model_fields)
        assert may_change(entry)
