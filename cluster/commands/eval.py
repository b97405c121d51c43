"""Held-out loss and perplexity of a run's checkpoint over every held-out window; --experts adds how its experts are used.

--protocol scores what a published figure was scored on: paper_table and paper_figure take whole windows only, of which the
MoEUT paper dropped an incomplete last batch.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--batch", type=int, default=16, help="windows at a time; the result does not depend on it (default: 16)")
    parser.add_argument("--protocol", default="tail", metavar="NAME", help="tail (default), paper_table or paper_figure")
    parser.add_argument("--experts", action="store_true", help="count what every token of these windows chooses, by visit and layer")
    parser.add_argument("--max-windows", type=int, metavar="N", help="only the first N windows of a source")
    parser.add_argument("--repeats", type=int, metavar="N", help="go N times through the repeated layers (default: as trained)")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from rich.console import Console

    from cluster.errors import ClusterError
    from distributed.run_folder import RunFolder

    for option, value in (("--batch", args.batch), ("--max-windows", args.max_windows), ("--repeats", args.repeats)):
        if value is not None and value < 1:
            raise ClusterError(f"{option} is {value}; it must be 1 or more")
    folder = RunFolder.existing(args.name)
    from distributed.evaluate import evaluate_run

    console = Console()
    with console.status("evaluating"):
        figures = evaluate_run(folder, args.step, args.batch, args.protocol, args.max_windows, args.repeats, args.experts)
    which = f"held-out, protocol {figures['protocol']}, repeats {figures['repeats']}"
    console.print(f"run {figures['run']} at step {figures['step']}, {which}", highlight=False)
    console.print(_table(figures))
    if args.experts:
        from cluster.expert_table import expert_table

        console.print(expert_table(figures["experts"]))
    return 0


def _table(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("source")
    for name in ("nats a token", "perplexity", "bits a byte", "tokens", "windows"):
        table.add_column(name, justify="right")
    rows = dict(figures["sources"])
    if len(rows) > 1:
        rows["all"] = figures["total"]
    for source, row in rows.items():
        bits = f"{row['bits_per_byte']:.4f}" if row.get("bits_per_byte") is not None else "-"
        table.add_row(source, f"{row['nats']:.4f}", f"{row['perplexity']:.2f}", bits, f"{row['tokens']:,}", f"{row['windows']:,}")
    return table
