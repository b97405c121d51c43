"""Start a run: prepare its data if needed, start the workers, show the progress, say what happened.

RECIPE is a path or the name of a file in configs/ (default: quickstart); field=value changes one of its fields, for
example train.lr=3e-4 or cluster.workers=4. With --from the recipe is that of the other run unless another is given.

Under the name of a finished run the next one becomes NAME-2, unless --name gave it. The folder of a run that has no checkpoint
is emptied and used again, its logs with it; one that has any is left alone.

Ctrl-C stops after a checkpoint, a second one at once. Exit codes: 0 finished, 1 failed, 2 a mistake in what was asked, 75 stopped
before the end (resume goes on), 130 interrupted before the run began.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE | field=value", help="recipe and changes to its fields")
    parser.add_argument("--name", help="name of the run (default: the recipe's; with --from RUN-from-STEP)")
    parser.add_argument("--from", dest="branch_from", metavar="RUN[@STEP]", help="start from a checkpoint of another run")
    parser.add_argument("--address", help="a running Ray cluster, host:port or auto (default: a private Ray on this machine)")
    parser.add_argument("--prepare-only", action="store_true", help="stop before the workers; print the line that starts them by torchrun")


def run(args: argparse.Namespace) -> int:
    """Start a new run and follow it to its end."""
    from rich.console import Console

    from cluster.new_run import NewRun

    request, console = NewRun(args.words, args.name, args.branch_from, args.address), Console()
    if args.prepare_only:
        from cluster.torchrun import prepare_only

        return prepare_only(request, console)
    return request.start(console)
