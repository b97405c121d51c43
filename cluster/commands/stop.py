"""End a run after the step it is in and a checkpoint; waits until it has ended."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait (default: 600)")


def run(args: argparse.Namespace) -> int:
    """Ask, wait, report."""
    import time

    from cluster.errors import ClusterError
    from cluster.new_run import check_stands_alone
    from cluster.run_status import status_of
    from distributed.run_folder import RunFolder

    folder = RunFolder.existing(args.name)
    check_stands_alone(folder)
    found = status_of(folder)
    if not _is_at_work(folder):
        raise ClusterError(f"run '{args.name}' is not at work (state: {found.state})")
    folder.stop_path.touch()
    print(f"run {args.name} stops after its step and a checkpoint", flush=True)
    if found.held_by:
        print(
            f"it is held by {found.held_by}, whose processes cannot be seen from here; if they are gone, Ctrl-C ends the waiting and "
            f"./launch.sh resume {args.name} goes on from the newest checkpoint",
            flush=True,
        )
    deadline = time.monotonic() + args.timeout
    while _is_at_work(folder):
        if time.monotonic() > deadline:
            will = f"held by {found.held_by}" if found.held_by else "but will"
            raise ClusterError(f"run '{args.name}' has not ended after {args.timeout:.0f} s, {will}; see ./launch.sh logs {args.name}")
        time.sleep(0.2)
    found = status_of(folder)
    print(f"run {args.name}: {found.state} at step {found.step or 0}; go on with ./launch.sh resume {args.name}")
    return 0 if found.state in ("stopped", "finished") else 1


def _is_at_work(run: RunFolder) -> bool:
    """As its lock says; of a lock that another host took only the run's state can tell when it has ended."""
    from cluster.run_lock import holder_elsewhere, is_held
    from cluster.run_status import AT_WORK, status_of

    return is_held(run) if holder_elsewhere(run) is None else status_of(run).state in AT_WORK
