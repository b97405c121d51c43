"""Parameters, multiply-accumulates and bytes of a recipe's model, part by part.

Stored: in memory. Unrolled: a layer counted at every visit. Active: met by one token, of a bank or a table only what it chose.
MACs, bytes of weights read and of key/value cache are of one token's forward pass in windows of data.seq_len. --json: to the unit.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from distributed.recipe import Recipe

BYTES_PER_NUMBER = {"bf16": 2, "fp32": 4, "fp64": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE | field=value", help="recipe and changes to its fields")
    parser.add_argument(
        "--precision", choices=BYTES_PER_NUMBER, help="type of weights and cache (default: train.precision, bf16 where that is auto)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from rich.console import Console

    from cluster.recipes import read_recipe

    figures = figures_of(read_recipe(args.words), args.precision)
    if args.json:
        print(json.dumps(figures, indent=1))
        return 0
    console, macs, total = Console(highlight=False), figures["gmacs_a_window"], figures["parts"][-1]
    console.print(f"{figures['recipe']}: {total['stored']:,} parameters; windows of {figures['seq_len']} tokens, {figures['precision']}")
    console.print(_table(figures["parts"]))
    console.print(f"a window: {figures['kv_bytes_a_window']:,} bytes of cache, {macs['exact']:,.3f} GMACs")
    console.print(f"(the MoEUT authors' count, without embedding and head: {macs['published']:,.3f} GMACs)")
    return 0


def figures_of(recipe: Recipe, precision: str | None = None) -> dict[str, Any]:
    """Everything that the table shows, as plain values."""
    from model.accounting import kv_cache_bytes, macs
    from model.sizes import part_sizes

    precision = precision or ("bf16" if recipe.train.precision == "auto" else recipe.train.precision)
    config, seq_len, width = recipe.model, recipe.data.seq_len, BYTES_PER_NUMBER[precision]
    return {
        "recipe": recipe.name,
        "seq_len": seq_len,
        "precision": precision,
        "parts": [asdict(part) for part in part_sizes(config, seq_len, width)],
        "kv_bytes_a_window": kv_cache_bytes(config, seq_len, width),
        "gmacs_a_window": {"exact": macs(config, seq_len).total / 1e9, "published": macs(config, seq_len, "published").body / 1e9},
    }


def _table(parts: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part")
    columns = ("visits", "stored", "unrolled", "active", "macs", "weight_bytes", "kv_bytes")
    for header in ("visits", "stored", "unrolled", "active", "MACs", "read B", "cache B"):
        table.add_column(header, justify="right", no_wrap=True)
    for part in parts:
        name = f"{part['part'].replace('_', '-')} {part['kind']}".rstrip()
        style = "bold" if part["part"] == "total" else None
        table.add_row(name, *(_short(part[column]) for column in columns), style=style)
    return table


def _short(number: int) -> str:
    """Four digits and a unit: 243.3M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)
