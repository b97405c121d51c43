"""Try a recipe: print its sizes and costs, then make its first steps at full size on small data of this machine.

Nothing of the recipe's corpus is fetched. RECIPE and field=value as for train; a smaller machine takes it with, for example,
cluster.workers=1 train.micro_batch=1 train.recompute=visit. The run's folder is removed, but for the logs where it failed; --keep keeps
all of it. The small data set stays, for other dry runs.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE | field=value", help="recipe and changes to its fields")
    parser.add_argument("--steps", type=int, default=3, help="steps to make (default: 3)")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder")


def run(args: argparse.Namespace) -> int:
    """Try it; returns the exit code."""
    from rich.console import Console

    from cluster.dry_run import DryRun
    from cluster.errors import ClusterError

    if args.steps < 1:
        raise ClusterError(f"--steps is {args.steps}; it must be 1 or more")
    return DryRun(args.words, args.steps, args.keep).start(Console())
