"""The fields of a recipe: type or choices, default, and what each means; those of a slot by kind.

PREFIX is a field or a group of them: train, model.halting, train.lr (default: everything).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from distributed.recipe_fields import FieldText, Group

PAGE = """# The fields of a recipe

Made by `./launch.sh fields --markdown > docs/recipe.md`; a test compares. A recipe is a YAML file (`configs/`); every field can be set on
the command line as well, for example `./launch.sh train train.lr=3e-4 model.halting='{kind: act}'`. A slot is filled by name: its
`kind` decides which other fields it has. `./launch.sh show RECIPE` prints a recipe with every default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="a field, or what the fields stand below")
    parser.add_argument("--markdown", action="store_true", help="print the page docs/recipe.md")


def run(args: argparse.Namespace) -> int:
    """Print a table on a terminal, elsewhere a line a field."""
    from rich.console import Console

    from distributed.recipe_fields import groups_below

    groups, console = groups_below(args.prefix), Console(highlight=False, markup=False)
    if args.markdown:
        print("\n\n".join([PAGE, *("\n".join(_markdown(group)) for group in groups)]))
    elif console.is_terminal:
        for group in groups:
            show_group(group, console)
    else:
        print("\n".join(line for group in groups for line in _lines(group)))
    return 0


def _title(group: Group) -> str:
    """What the group's fields stand below, as a user writes it."""
    kind = f".kind={' | '.join(group.kinds)}" if group.kinds else ""
    return f"{group.path}{kind}" if group.path else "a recipe"


def _lines(group: Group) -> Iterator[str]:
    yield f"{_title(group)}: {group.words}"
    for field in group.fields:
        yield f"  {group.dotted(field)}: {field.type}{_default(field)}. {field.words}"


def _default(field: FieldText) -> str:
    return "" if not field.default else ", required" if field.default == "required" else f", default {field.default}"


def show_group(group: Group, console: Console) -> None:
    """Print a group as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("field", "type", "default", "meaning"):
        table.add_column(header, overflow="fold")
    for field in group.fields:
        table.add_row(*field)
    console.print(_title(group), style="bold green")
    console.print(group.words)
    if group.fields:
        console.print(table)
    console.print()


def _markdown(group: Group) -> Iterator[str]:
    yield from (f"## {_title(group)}".replace("|", "or"), "", group.words)
    if not group.fields:
        return
    yield from ("", "| field | type | default | meaning |", "|---|---|---|---|")
    for field in group.fields:
        name, kind, default, words = (text.replace("|", "\\|") for text in field)
        yield f"| `{name}` | {kind} | {default} | {words} |"
