"""End a run after the step it is in and a checkpoint; waits until it has ended."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait (default: 600)")


def run(args: argparse.Namespace) -> int:
    """Ask, wait, report."""
    import time

    from cluster.errors import ClusterError
    from cluster.new_run import check_stands_alone
    from cluster.run_lock import is_held
    from cluster.run_status import status_of
    from distributed.run_folder import RunFolder

    folder = RunFolder.existing(args.name)
    check_stands_alone(folder)
    if not is_held(folder):
        raise ClusterError(f"run '{args.name}' is not at work (state: {status_of(folder).state})")
    folder.stop_path.touch()
    print(f"run {args.name} stops after its step and a checkpoint", flush=True)
    deadline = time.monotonic() + args.timeout
    while is_held(folder):
        if time.monotonic() > deadline:
            raise ClusterError(f"run '{args.name}' has not ended after {args.timeout:.0f} s, but will; see ./launch.sh logs {args.name}")
        time.sleep(0.2)
    found = status_of(folder)
    print(f"run {args.name}: {found.state} at step {found.step or 0}; go on with ./launch.sh resume {args.name}")
    return 0 if found.state in ("stopped", "finished") else 1
