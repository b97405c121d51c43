"""Words about a fault in a recipe: the field as the user wrote it, the value, and what would be right.

pydantic places a fault by the way it went through the schema, on which the kind of a slot stands beside the fields. The same way
through the models' annotations tells which is which, though a kind and a field may have one name.
"""

from __future__ import annotations

import difflib
import json
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from distributed.recipe import Recipe
from distributed.recipe_types import is_model, is_union, kinds_of, plain


class Place(NamedTuple):
    """Where a fault is: its dotted `field`, the annotation there, and the model that holds the field (None: not one of a model)."""

    field: str
    annotation: Any
    holder: type[BaseModel] | None


def explain(error: Any) -> str:
    """A line about one of pydantic's errors."""
    place = find(error["loc"])
    field, given = place.field or "recipe", error.get("input")
    match error["type"]:
        case "extra_forbidden":
            return f"{field}: unknown field; {_near_field(field, place.holder)}"
        case "missing":
            return f"{field}: required but not given"
        case "union_tag_not_found":
            return f"{field}: {_kind_missing(place, given)}"
        case "union_tag_invalid":
            kinds = kinds_of(place.annotation)
            return f"{field}.kind: must be one of {', '.join(kinds)}{_meant(error['ctx']['tag'], kinds)} (got {error['ctx']['tag']!r})"
        case "model_type" | "model_attributes_type":
            return f"{field}: {_group_wanted(place, given)}"
    shown = "" if isinstance(given, dict | list | BaseModel) else f" (got {given!r})"
    return f"{field}: {error['msg'].removeprefix('Value error, ')}{shown}"


def find(location: tuple[int | str, ...]) -> Place:
    """Follow pydantic's location through the recipe's models; what it says of a union's branches is left out."""
    words: list[str] = []
    annotation: Any = Recipe
    holder: type[BaseModel] | None = None
    for part in location:
        annotation = plain(annotation)
        if kinds := kinds_of(annotation):
            annotation = kinds.get(str(part))
            continue
        if is_union(annotation):
            break
        words.append(str(part))
        holder = annotation if is_model(annotation) else None
        if holder is not None:
            field = holder.model_fields.get(str(part))
            annotation = field.annotation if field else None
        else:
            annotation = next(reversed(get_args(annotation)), None)  # an item of a list, a value of a mapping
    return Place(".".join(words), annotation, holder)


def _near_field(field: str, holder: type[BaseModel] | None) -> str:
    """The holder's own field that may have been meant, or what fields it has."""
    known = list(holder.model_fields) if holder else []
    near = difflib.get_close_matches(field.rpartition(".")[2], known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"the fields here are {', '.join(known)}"


def _meant(tag: str, kinds: dict[str, type[BaseModel]]) -> str:
    near = difflib.get_close_matches(tag, kinds, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _group_wanted(place: Place, given: Any) -> str:
    """One value was given for a group of fields: the name of a kind, as a rule."""
    words, kinds = f"a group of fields, not one value (got {given!r})", kinds_of(place.annotation)
    if not kinds:
        return f"{words}; the fields here are {', '.join(plain(place.annotation).model_fields)}"
    if str(given) not in kinds:
        return f"{words}; its kind is one of {', '.join(kinds)}{_meant(str(given), kinds)}"
    return f"{words}; write {place.field}.kind={given}, or {{kind: {given}}} for the whole group"


def _kind_missing(place: Place, given: Any) -> str:
    """Fields of a slot were given, and not which slot it is. The kind that it has by itself is the first to be suggested."""
    kinds, own = kinds_of(place.annotation), _own_kind(place)
    words = f"give kind as well: one of {', '.join(kinds)}"
    fitting = [kind for kind in sorted(kinds, key=lambda kind: kind != own) if _is_whole(kinds[kind], {"kind": kind} | given)]
    if not fitting:
        return words
    values = ", ".join(f"{name}: {json.dumps(value)}" for name, value in given.items())
    return f"{words}; for example {place.field}={{kind: {fitting[0]}, {values}}}"


def _own_kind(place: Place) -> str | None:
    """The kind of a slot that is not given; None where it must be."""
    field = place.holder.model_fields.get(place.field.rpartition(".")[2]) if place.holder else None
    return getattr(field.default, "kind", None) if field else None


def _is_whole(model: type[BaseModel], values: dict[str, Any]) -> bool:
    try:
        model.model_validate(values)
    except ValidationError:
        return False
    return True
