"""Show the end of a run's logs: rank 0 unless told; -f follows until the run ends."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    parser.add_argument("-n", "--lines", type=int, default=50, help="lines to begin with (default: 50)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, default=0, help="whose log (default: 0)")
    which.add_argument("--driver", action="store_true", help="the log of the process that holds the workers")


def run(args: argparse.Namespace) -> int:
    """Print the log."""
    import sys
    import time

    from cluster.errors import ClusterError
    from cluster.failures import last_lines
    from cluster.rank_process import rank_log
    from cluster.run_status import AT_WORK, status_of
    from distributed.run_folder import RunFolder

    folder = RunFolder.existing(args.name)
    path = folder.logs / "driver.log" if args.driver else rank_log(folder, args.rank)
    if not path.exists() and not (args.follow and status_of(folder).state in AT_WORK):
        there = ", ".join(sorted(entry.name for entry in folder.logs.glob("*.log"))) or "none"
        raise ClusterError(f"run '{args.name}' has no {path.name}; logs in {folder.logs}: {there}")
    offset = path.stat().st_size if path.exists() else 0
    for line in last_lines(path, args.lines):
        print(line)
    while args.follow:
        ended = status_of(folder).state not in AT_WORK
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                text = file.read()
            offset += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if ended:
            break
        time.sleep(0.3)
    return 0
