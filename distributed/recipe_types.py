"""What the annotations of a recipe's models say: which kinds fill a slot, and what may be written into a field."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_NAMES = {bool: "true | false", int: "integer", float: "number", str: "text", type(None): "null"}
_BOUNDS = {
    annotated_types.Ge: (">=", "ge"),
    annotated_types.Gt: (">", "gt"),
    annotated_types.Le: ("<=", "le"),
    annotated_types.Lt: ("<", "lt"),
    annotated_types.MultipleOf: ("a multiple of", "multiple_of"),
}


def plain(annotation: Any) -> Any:
    """Without what `Annotated` and `| None` add."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if is_union(annotation):
        given = [one for one in get_args(annotation) if one is not type(None)]
        if len(given) == 1:
            return plain(given[0])
    return annotation


def kinds_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models of a slot that is filled by `kind`; empty where the annotation is none."""
    annotation = plain(annotation)
    members = get_args(annotation) if is_union(annotation) else ()
    if not members or not all(is_model(member) and "kind" in member.model_fields for member in members):
        return {}
    return {kind: member for member in members for kind in get_args(member.model_fields["kind"].annotation)}


def is_union(annotation: Any) -> bool:
    """Whether it allows several types."""
    return get_origin(annotation) in (Union, types.UnionType)


def is_model(annotation: Any) -> bool:
    """Whether it is a group of fields."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def type_text(annotation: Any, notes: Iterable[Any] = ()) -> str:
    """What may be written, as YAML has it: `integer >= 1 | null`, `none | experts | visit`; `fields` for a group of them.

    Args:
        annotation: of a field, or a part of one.
        notes: pydantic's bounds of the numbers in it.
    """
    if get_origin(annotation) is Annotated:
        annotation, *given = get_args(annotation)
        notes = [note for one in given for note in (one.metadata if isinstance(one, FieldInfo) else [one])]
    if kinds := kinds_of(annotation):
        return " | ".join([*kinds, *(["null"] if type(None) in get_args(annotation) else [])])
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if is_union(annotation):
        return " | ".join(type_text(one, notes) for one in arguments)
    if is_model(annotation):
        return "fields"
    if annotation in (int, float):
        return f"{_NAMES[annotation]} {', '.join(_bounds(notes))}".strip()
    if annotation in _NAMES:
        return _NAMES[annotation]
    return _container_text(get_origin(annotation), arguments)


def _container_text(container: Any, arguments: tuple[Any, ...]) -> str:
    """Of a mapping, or a list whose length may be given."""
    inner = ["..." if one is ... else "fields" if kinds_of(one) else type_text(one) for one in arguments]
    if container is dict:
        return f"{{{inner[0]}: {inner[1]}}}"
    return f"[{', '.join([*inner, '...'] if container is list else inner)}]"


def _bounds(notes: Iterable[Any]) -> list[str]:
    """The bounds of a number: `>= 0`, `< 1`."""
    known = [(_BOUNDS[type(note)], note) for note in notes if type(note) in _BOUNDS]
    return [f"{sign} {getattr(note, name):g}" for (sign, name), note in known]
