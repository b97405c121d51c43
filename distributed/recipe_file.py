"""From a YAML file and dotted overrides (`train.lr=3e-4`) to a recipe, or to words about every fault in it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_faults import explain

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PARTS = CONFIGS / "corpora"
"""Parts of a recipe, for `data=@FILE`."""


def load_recipe(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file and apply `key.path=value` overrides (values are YAML).

    Raises:
        RunError: the file cannot be read, an override names no field, or a value is wrong.
    """
    path = Path(path)
    values = _read_yaml(path, "recipe")
    if not isinstance(values, dict):
        raise RunError(f"recipe {path} must be a mapping of fields, found {type(values).__name__}")
    for override in overrides or []:
        _apply_override(values, override)
    return check_recipe(values, str(path))


def find_file(name: str) -> Path | None:
    """The file that `name` means: a path from where the user stands or from the project's root, else in configs/ with or without .yaml."""
    candidates = (Path(name), CONFIGS.parent / name, CONFIGS / name, CONFIGS / f"{name}.yaml")
    return next((path for path in candidates if path.is_file()), None)


def _read_yaml(path: Path, what: str) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        raise RunError(f"{what} {path}: {fault.strerror}; the recipes that come with Mootron are in configs/") from None
    except UnicodeDecodeError:
        raise RunError(f"{what} {path} is not a text file; give a YAML file such as those in configs/") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as fault:  # a date of month 13 is a plain ValueError
        raise RunError(f"{what} {path} is not YAML: {fault}") from None


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
    value = _read_part(text[1:], override) if text.startswith("@") else _parse_value(text)
    if isinstance(place, list):
        place[_list_index(place, last, override)] = value
    elif isinstance(place, dict):
        place[_key(place, last)] = value
    else:
        raise RunError(f"override '{override}': {'.'.join(parents)} is a single value, not a group of fields")


def _descend(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, part, override)]
    if not isinstance(place, dict):
        raise RunError(f"override '{override}': {part} is below a single value")
    key = _key(place, part)
    if place.get(key) is None:
        place[key] = {}
    return place[key]


def _key(place: dict[Any, Any], part: str) -> Any:
    """The key that reads as `part`: a layer's number is an integer in a file."""
    return next((key for key in place if str(key) == part), part)


def _read_part(name: str, override: str) -> Any:
    path = find_file(name)
    if path is not None:
        return _read_yaml(path, f"override '{override}':")
    known = [str(path.relative_to(CONFIGS).with_suffix("")) for path in sorted(PARTS.glob("*.yaml"))]
    near = difflib.get_close_matches(Path(name).stem, [Path(part).name for part in known], n=1, cutoff=0.5)
    hint = f"did you mean @{PARTS.name}/{near[0]}?" if near else f"parts in configs/: {', '.join(known)}"
    raise RunError(f"override '{override}': there is no file '{name}'; {hint}")


def _list_index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise RunError(f"override '{override}': '{part}' must be a position from 0 to {len(place) - 1}")
    return int(part)


def _parse_value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a date of month 13 is a plain ValueError
        return text
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value
