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
    parser.add_argument(
        "--repeats", metavar="N[,N...]", help="go N times through the repeated layers, a row a number (default: as trained)"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from rich.console import Console

    from cluster.errors import ClusterError
    from distributed.run_folder import RunFolder

    for option, value in (("--batch", args.batch), ("--max-windows", args.max_windows)):
        if value is not None and value < 1:
            raise ClusterError(f"{option} is {value}; it must be 1 or more")
    repeats = [] if args.repeats is None else _numbers(args.repeats)
    folder = RunFolder.existing(args.name)
    from distributed.evaluate import evaluate_run

    console = Console()
    with console.status("evaluating"):
        results = evaluate_run(folder, args.step, args.batch, args.protocol, args.max_windows, repeats, args.experts)
    which = f"held-out, protocol {results[0]['protocol']}, repeats {', '.join(str(figures['repeats']) for figures in results)}"
    console.print(f"run {results[0]['run']} at step {results[0]['step']}, {which}", highlight=False)
    console.print(_table(results))
    if args.experts:
        from cluster.expert_table import expert_table

        for figures in results:
            if len(results) > 1:
                console.print(f"\nrepeats {figures['repeats']}", highlight=False)
            console.print(expert_table(figures["experts"]))
    return 0


def _numbers(words: str) -> list[int]:
    """The numbers of `1,2,4,8`."""
    from cluster.errors import ClusterError

    for word in words.split(","):
        if not word.strip().isdecimal() or int(word) < 1:
            raise ClusterError(f"--repeats is {words}, of which '{word}' is no whole number of 1 or more; write 4, or several as 1,2,4,8")
    return [int(word) for word in words.split(",")]


def _table(results: list[dict[str, Any]]) -> Table:
    """A row a source and number of repeats, which is told where there are several."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    several = ["repeats"] if len(results) > 1 else []
    for name in (*several, "source"):
        table.add_column(name)
    for name in ("nats a token", "perplexity", "bits a byte", "tokens", "windows"):
        table.add_column(name, justify="right")
    for figures in results:
        rows = dict(figures["sources"])
        if len(rows) > 1:
            rows["all"] = figures["total"]
        for source, row in rows.items():
            bits = f"{row['bits_per_byte']:.4f}" if row.get("bits_per_byte") is not None else "-"
            first = [str(figures["repeats"])] if several else []
            counts = (f"{row['tokens']:,}", f"{row['windows']:,}")
            table.add_row(*first, source, f"{row['nats']:.4f}", f"{row['perplexity']:.2f}", bits, *counts)
    return table
