"""Delete a run's folder with its checkpoints, logs and figures, after its name is typed again. Not that of a run at work.

RUN may be COMPARISON/RUN. Its data set stays, as do checkpoints that lie at checkpoint.address.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Tell what goes, ask, delete."""
    from cluster.errors import ClusterError
    from cluster.removal import check_at_rest, remove, what_goes
    from distributed.run_folder import RunFolder

    folder = RunFolder.existing(args.name)
    check_at_rest(folder)
    print("\n".join(what_goes(folder)), flush=True)
    if not args.yes:
        try:
            typed = input(f"type {args.name} to remove it: ").strip()
        except EOFError:
            raise ClusterError("nothing is removed: nobody is here to be asked; --yes removes without asking") from None
        if typed != args.name:
            raise ClusterError(f"nothing is removed: '{typed}' is not '{args.name}'")
    remove(folder)
    print(f"run {args.name} is removed")
    return 0
