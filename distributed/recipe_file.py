"""From a YAML file and dotted overrides (`train.lr=3e-4`) to a recipe, or to words about every fault in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_faults import explain


def load_recipe(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file and apply `key.path=value` overrides (values are YAML).

    Raises:
        RunError: the file cannot be read, an override names no field, or a value is wrong.
    """
    path = Path(path)
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise RunError(f"recipe {path} must be a mapping of fields, found {type(values).__name__}")
    for override in overrides or []:
        _apply_override(values, override)
    return check_recipe(values, str(path))


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text()
    except OSError as fault:
        raise RunError(f"recipe {path}: {fault.strerror}; the recipes that come with Mootron are in configs/") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise RunError(f"recipe {path} is not YAML: {fault}") from None


def check_recipe(values: dict[str, Any], origin: str) -> Recipe:
    """Validate plain values; every fault is named by its dotted field."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as fault:
        lines = [explain(error) for error in fault.errors()]
        raise RunError(f"recipe {origin}:\n  " + "\n  ".join(lines)) from None


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML, every default written out; `load_recipe` reads the same recipe from it."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted field in nested plain values, e.g. `train.lr=3e-4` or `data.sources.0.path=/texts`.

    A value `@FILE` is the content of a YAML file: `data=@configs/corpora/pes2o.yaml`.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RunError(f"override '{override}' must read field.name=value, for example train.lr=3e-4")
    place: Any = values
    *parents, last = key.split(".")
    for part in parents:
        place = _descend(place, part, override)
    value = _read_yaml(Path(text[1:])) if text.startswith("@") else _parse_value(text)
    if isinstance(place, list):
        place[_list_index(place, last, override)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RunError(f"override '{override}': {'.'.join(parents)} is a single value, not a group of fields")


def _descend(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, part, override)]
    if not isinstance(place, dict):
        raise RunError(f"override '{override}': {part} is below a single value")
    if place.get(part) is None:
        place[part] = {}
    return place[part]


def _list_index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise RunError(f"override '{override}': '{part}' must be a position from 0 to {len(place) - 1}")
    return int(part)


def _parse_value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value
