"""Fields of a recipe's text changed, and nothing else: comments, order and layout stay as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from distributed.errors import RunError
from distributed.recipe_file import check_recipe, load_recipe
from model.config import ModelConfig


def overridden(path: Path, overrides: list[str]) -> str:
    """The text of a recipe file with `field=value` overrides written into it.

    Raises:
        RunError: an override is wrong, or the text cannot say it.
    """
    wanted, text = load_recipe(path, overrides), path.read_text()
    for override in overrides:
        field, _, value = override.partition("=")
        text = set_field(text, field, value)
        if not _is_yaml(text):
            raise RunError(f"override '{override}' cannot be written into {path}; change the field in a file of your own")
    if overrides and check_recipe(yaml.safe_load(text), f"{path} with {' '.join(overrides)}") != wanted:
        raise RunError(f"{path} cannot be written with {' '.join(overrides)}; change the fields in a file of your own")
    return text


def _is_yaml(text: str) -> bool:
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return True


def set_field(text: str, field: str, value: int | str) -> str:
    """The YAML `text` with the dotted `field` set to `value`; a field that stood at its default is added to its group.

    Raises:
        RunError: the group that the field belongs to is not written in the text.
    """
    group = yaml.compose(text, Loader=yaml.SafeLoader)
    *parents, last = field.split(".")
    for depth, name in enumerate(parents, 1):
        found = _child(group, name)
        if not isinstance(found, yaml.MappingNode):
            raise RunError(f"the recipe leaves {'.'.join(parents[:depth])} at its default; write it out to have {field} changed")
        group = found
    written = _child(group, last)
    if written is not None:
        return text[: written.start_mark.index] + str(value) + text[_end(written) :]
    return _add(text, group, f"{last}: {value}")


def set_model(text: str, config: ModelConfig) -> str:
    """The recipe `text` with another model in place of its own, a slot a line; what stands at its default is left out."""
    written = _child(yaml.compose(text, Loader=yaml.SafeLoader), "model")
    assert written is not None, "a recipe has a model"
    values = {name: getattr(config, name) for name in ModelConfig.model_fields}
    default = {name: field.get_default(call_default_factory=True) for name, field in ModelConfig.model_fields.items()}
    values = {name: value for name, value in values.items() if value != default[name]}
    lines = [f"{name}: {_in_braces(value)}" for name, value in values.items()]
    start = text.rindex("model:", 0, written.start_mark.index) + len("model:")
    return text[:start] + "".join(f"\n  {line}" for line in lines) + text[_end(written) :]


def _in_braces(value: Any) -> str:
    """A slot by its kind and what differs from its defaults, a number as it is."""
    if not isinstance(value, BaseModel):
        return str(value)
    kind = {"kind": value.kind} if hasattr(value, "kind") else {}
    return "{" + ", ".join(f"{name}: {one}" for name, one in (kind | value.model_dump(exclude_defaults=True)).items()) + "}"


def _end(node: yaml.Node) -> int:
    """Where what is written of a node ends: a group in lines is said to end where the next field begins."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)


def _child(group: yaml.Node, name: str) -> yaml.Node | None:
    return next((node for key, node in group.value if key.value == name), None)


def _add(text: str, group: yaml.Node, line: str) -> str:
    """`line` behind the last field of a group in braces, before the first of one in lines."""
    if group.flow_style:
        at = group.value[-1][1].end_mark.index if group.value else group.start_mark.index + 1
        return text[:at] + (", " if group.value else "") + line + text[at:]
    first = group.start_mark
    return text[: first.index] + line + "\n" + " " * first.column + text[first.index :]
