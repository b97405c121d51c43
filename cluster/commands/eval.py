"""Held-out loss and perplexity of a run's checkpoint over every held-out window."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--batch", type=int, default=16, help="windows at a time; the result does not depend on it (default: 16)")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from rich.console import Console

    from cluster.errors import ClusterError
    from distributed.run_folder import RunFolder

    if args.batch < 1:
        raise ClusterError(f"--batch is {args.batch}; it must be 1 or more")
    folder = RunFolder.existing(args.name)
    from distributed.evaluate import evaluate_run

    console = Console()
    with console.status("evaluating"):
        figures = evaluate_run(folder, step=args.step, batch=args.batch)
    console.print_json(data=figures)
    return 0
