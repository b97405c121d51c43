"""One field of a recipe's text changed, and nothing else: comments, order and layout stay as they were written."""

from __future__ import annotations

import yaml

from distributed.errors import RunError


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
        return text[: written.start_mark.index] + str(value) + text[written.end_mark.index :]
    return _add(text, group, f"{last}: {value}")


def _child(group: yaml.Node, name: str) -> yaml.Node | None:
    return next((node for key, node in group.value if key.value == name), None)


def _add(text: str, group: yaml.Node, line: str) -> str:
    """`line` behind the last field of a group in braces, before the first of one in lines."""
    if group.flow_style:
        at = group.value[-1][1].end_mark.index if group.value else group.start_mark.index + 1
        return text[:at] + (", " if group.value else "") + line + text[at:]
    first = group.start_mark
    return text[: first.index] + line + "\n" + " " * first.column + text[first.index :]
