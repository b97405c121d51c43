"""The fields of a recipe with their words, for people: what `./launch.sh fields` and docs/recipe.md show.

A field's words are the string below it in the source. pydantic can read them too, when a class is made, which cost every process
about 0.7 s at its start; here a source file is read when somebody asks.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_types import is_model, kinds_of, plain, type_text


class FieldText(NamedTuple):
    """A field as a person reads of it. `default` is `required` where there is none, empty for a group of fields."""

    name: str
    type: str
    default: str
    words: str


class Group(NamedTuple):
    """Fields that stand together, at the dotted `path` (the recipe's own: empty); of a slot those of some of its `kinds`."""

    path: str
    kinds: tuple[str, ...]
    words: str
    fields: list[FieldText]

    def dotted(self, field: FieldText) -> str:
        """A field's name as a user writes it."""
        return f"{self.path}.{field.name}".lstrip(".")


def groups_below(prefix: str = "") -> list[Group]:
    """The field `prefix` (its group with this field alone) and all groups below it; everything for an empty prefix.

    A position in a list may be a number or `N`.

    Raises:
        RunError: there is no such field; the message names near ones.
    """
    groups = list(_groups(Recipe, "", (), set()))
    if not prefix:
        return groups
    wanted = re.sub(r"\.\d+(?=\.|$)", ".N", prefix.strip("."))
    if wanted.removesuffix(".kind") in {group.path for group in groups if group.kinds}:
        wanted = wanted.removesuffix(".kind")
    found = []
    for group in groups:
        fields = [field for field in group.fields if group.dotted(field) == wanted]
        if group.path == wanted or group.path.startswith(f"{wanted}."):
            found.append(group)
        elif fields:
            found.append(group._replace(fields=fields))
    if not found:
        raise RunError(f"a recipe has no field '{prefix}'; {_near(wanted, groups)}")
    return found


def _near(wanted: str, groups: list[Group]) -> str:
    """The fields that may have been meant: of the same name elsewhere, else of a similar one."""
    dotted = list(dict.fromkeys(group.dotted(field) for group in groups for field in group.fields))
    last = wanted.rpartition(".")[2]
    names = {name: name.rpartition(".")[2] for name in dotted}
    near = [name for name in dotted if names[name] == last] or difflib.get_close_matches(wanted, dotted, n=1)
    near = near or [name for match in difflib.get_close_matches(last, set(names.values()), n=1) for name in dotted if names[name] == match]
    return f"did you mean {' or '.join(near)}?" if near else f"the first words are {', '.join(Recipe.model_fields)}"


def _groups(model: type[BaseModel], path: str, kinds: tuple[str, ...], seen: set[tuple[str, type[BaseModel]]]) -> Iterator[Group]:
    """The group of a model, then those of its fields. Kinds of one slot share some of these: they come once, which `seen` knows."""
    if (path, model) in seen:
        return
    seen.add((path, model))
    named = {name: field for name, field in model.model_fields.items() if name != "kind" or not kinds}
    texts = [FieldText(name, type_text(f.annotation, f.metadata), _default_text(f), words_of(model, name)) for name, f in named.items()]
    yield Group(path, kinds, " ".join((inspect.getdoc(model) or "").split()), texts)
    for name, field in named.items():
        annotation, place = plain(field.annotation), f"{path}.{name}".lstrip(".")
        if get_origin(annotation) is list:
            annotation, place = plain(get_args(annotation)[0]), f"{place}.N"
        if is_model(annotation):
            yield from _groups(annotation, place, (), seen)
        by_kind = kinds_of(annotation)
        for inner in dict.fromkeys(by_kind.values()):
            yield from _groups(inner, place, tuple(kind for kind in by_kind if by_kind[kind] is inner), seen)


def words_of(model: type[BaseModel], field: str) -> str:
    """The words of a field: below it in its class, or in the base that declares it first; empty where there are none."""
    owners = [owner for owner in model.__mro__ if issubclass(owner, BaseModel) and owner is not BaseModel]
    found = (_strings_below(owner.__module__).get((owner.__name__, field)) for owner in owners)
    return " ".join((next(filter(None, found), None) or "").split())


@cache
def _strings_below(module: str) -> dict[tuple[str, str], str]:
    """The strings that stand below fields in a module's source, by class and field."""
    found = {}
    for owner in ast.parse(inspect.getsource(sys.modules[module])).body:
        for field, below in pairwise(owner.body if isinstance(owner, ast.ClassDef) else []):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[owner.name, name] = words  # type: ignore[attr-defined]
    return found


def _default_text(field: FieldInfo) -> str:
    """The default as YAML has it; of a slot its kind."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return str(getattr(value, "kind", "")) if kinds_of(field.annotation) else ""
    return value if isinstance(value, str) else json.dumps(value)
