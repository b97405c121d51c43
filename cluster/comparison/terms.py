"""Equal terms: what all recipes of a comparison must have alike, and what a run that has begun must still have."""

from __future__ import annotations

from typing import Any

from cluster.comparison.entries import Entry
from cluster.errors import ClusterError
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.world_rules import check_world

# How the stream is read, not what it holds.
_READING = {"data.loader_workers", "data.prefetch", "data.on_damage"}
_EQUAL = ("data.", "validation.every", "validation.windows", "train.steps", "train.global_batch", "train.precision")
_DECIDED = {
    "seed": "its seeds are those of --seeds",
    "data.order_seed": "it is the run's seed (--seeds)",
    "cluster.workers": "every run has one worker",
    "train.engine": "every run has the plain engine",
}
"""Fields that a comparison sets itself, and what to."""


def check_changes(words: list[str]) -> None:
    """None of the words is a `field=value` of a field that the comparison sets.

    Raises:
        ClusterError: one is.
    """
    for word in words:
        field, equals, _ = word.partition("=")
        if equals and field in _DECIDED:
            raise ClusterError(f"'{word}': a comparison sets {field} itself: {_DECIDED[field]}; leave it out")


def check_equal_terms(recipes: dict[str, Recipe]) -> None:
    """All recipes take the same samples in the same order, as many steps, and are scored on the same held-out windows.

    Raises:
        ClusterError: a field that must be equal differs, or a recipe needs more than one worker.
    """
    for label, recipe in recipes.items():
        try:
            check_world(recipe, 1)
        except RunError as fault:
            raise ClusterError(f"recipe '{label}': {fault} (a run of a comparison has one worker)") from None
    (first, reference), *others = recipes.items()
    expected = terms(reference)
    for label, recipe in others:
        if difference := first_difference(expected, terms(recipe)):
            field, there, here = difference
            raise ClusterError(
                f"recipe '{label}': {field} is {here!r}, but {there!r} in '{first}'; "
                f"a comparison trains all recipes on the same terms: make {field} equal"
            )


def terms(recipe: Recipe) -> dict[str, Any]:
    """The fields that must be equal over the recipes, by dotted name."""
    fields = flat(recipe.model_dump(mode="json"))
    return {name: value for name, value in fields.items() if name.startswith(_EQUAL) and name not in _READING}


def check_begun(entry: Entry) -> None:
    """A run that has begun goes on with the recipe it began with.

    Raises:
        ClusterError: the recipe has changed since.
    """
    if not entry.run.recipe_path.exists():
        return
    before = flat(entry.run.recipe().model_dump(mode="json"))
    if difference := first_difference(before, flat(entry.recipe.model_dump(mode="json"))):
        field, there, here = difference
        raise ClusterError(
            f"run {entry.run.path.parent.name}/{entry.run.name} began with {field} {there!r}, now it is {here!r}; "
            f"choose another --name, or remove {entry.run.path}"
        )


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain values by dotted name."""
    if isinstance(values, dict):
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list):
        items = [(str(place), value) for place, value in enumerate(values)]
    else:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def first_difference(expected: dict[str, Any], found: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """(field, expected, found) of the first field that differs; None stands for a field that is missing."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        if expected.get(name) != found.get(name):
            return name, expected.get(name), found.get(name)
    return None
