"""Train a set of recipes side by side on equal terms and write a report.

RECIPE is a recipe file or a folder of them (default: configs/compare/small); field=value changes a field of all. All recipes must
have the same data, steps and batch, and be matched by parameters or by multiply-accumulates. Runs are Ray tasks, as many at once as
there are cores or GPUs; without Ray (or with --local) they run one after another. The same command again keeps finished runs and
goes on with the others. Exit codes: 0 all finished, 1 a run failed, 2 a mistake in what was asked, 75 stopped before the end.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE | field=value", help="recipes or folders of them, and changes to all")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 1..N of initial weights and sample order (default: 3)")
    parser.add_argument("--name", help="of the comparison's folder in runs/ (default: compare-FOLDER)")
    parser.add_argument("--matched", choices=("params", "macs"), default="params", help="by what the recipes are matched (default: params)")
    parser.add_argument("--tolerance", type=float, default=0.02, help="how far above the smallest one may be (default: 0.02)")
    parser.add_argument("--unmatched", action="store_true", help="compare recipes that are not matched")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after a checkpoint of every run once M minutes are over")
    parser.add_argument("--local", action="store_true", help="without Ray, one run after another")
    parser.add_argument("--address", help="a running Ray cluster, host:port or auto (default: a private Ray on this machine)")


def run(args: argparse.Namespace) -> int:
    """Check everything, train what is missing, write the report."""
    import shlex
    import sys

    from rich.console import Console

    from cluster.comparison.carry_out import Request, carry_out
    from cluster.errors import ClusterError

    if args.minutes is not None and args.minutes <= 0:
        raise ClusterError(f"--minutes is {args.minutes:g}; it must be above 0")
    if args.tolerance < 0:
        raise ClusterError(f"--tolerance is {args.tolerance:g}; it must be 0 or more")
    seconds = None if args.minutes is None else 60.0 * args.minutes
    tolerance = None if args.unmatched else args.tolerance
    request = Request(args.words, args.seeds, args.name, args.matched, tolerance, seconds, args.local, args.address)
    return carry_out(request, shlex.join(["./launch.sh", *sys.argv[1:]]), Console())
