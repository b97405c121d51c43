"""From a YAML file and dotted overrides (`train.lr=3e-4`) to a recipe, or to words about every fault in it.

A fault is named by the field as the user wrote it, the value, and what would be right.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from distributed.errors import RunError
from distributed.recipe import Recipe
from model.config import ModelConfig


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
        lines = [_explain(error) for error in fault.errors()]
        raise RunError(f"recipe {origin}:\n  " + "\n  ".join(lines)) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted field in nested plain values, e.g. `train.lr=3e-4` or `data.sources.0.path=/texts`.

    A value `@FILE` is the content of a YAML file: `data=@configs/paper/data/pes2o.yaml`.
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


def _explain(error: Any) -> str:
    # Discriminated unions put the chosen kind into pydantic's location; the user did not write it.
    kinds = {kind for slot in _parts(ModelConfig) if "kind" in slot.model_fields for kind in get_args(slot.model_fields["kind"].annotation)}
    location = [str(part) for part in error["loc"] if str(part) not in kinds]
    field = ".".join(location) or "recipe"
    given = error.get("input")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_fields(), n=1, cutoff=0.5)
        return f"{field}: unknown field" + (f"; did you mean {near[0]}?" if near else "; remove it")
    if error["type"] == "missing":
        return f"{field}: required but not given"
    shown = "" if isinstance(given, dict | list | BaseModel) else f" (got {given!r})"
    return f"{field}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _known_fields() -> list[str]:
    """Names of all fields, of the recipe and of its parts."""
    return [name for part in _parts(Recipe) for name in part.model_fields]


def _parts(whole: type[BaseModel]) -> list[type[BaseModel]]:
    """`whole` and every model that a field of one may hold."""
    found: list[type[BaseModel]] = []
    pending = [whole]
    while pending:
        part = pending.pop()
        found.append(part)
        for field in part.model_fields.values():
            pending.extend(_inner_models(field.annotation))
    return found


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found.extend(_inner_models(argument))
    return found
