"""List runs with state, step, loss, tokens/s, goodput (share of the time since submission in steps that survived) and the figures' age.

With names also their checkpoints. -f goes on with the progress line of one run until it ends; Ctrl-C leaves the run at work.
`lost`: the run was at work, but its process is gone; resume goes on from its newest checkpoint. A run that another host holds counts as
at work, because its processes cannot be seen from here: the lines below the table say which host, and since when.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("names", nargs="*", metavar="RUN", help="only these (default: all)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")


def run(args: argparse.Namespace) -> int:
    """Print the table, and under it who holds a run elsewhere, what last happened to its group and why a failed run failed."""
    from rich.console import Console

    from cluster.checkpoints import checkpoint_table, stored_checkpoints
    from cluster.errors import ClusterError
    from cluster.run_status import status_of, status_table, watch
    from distributed.run_folder import RunFolder, all_runs, runs_root

    if args.follow and len(args.names) != 1:
        raise ClusterError(f"-f follows one run, {len(args.names)} are named: ./launch.sh status -f RUN")
    console = Console()
    folders = [RunFolder.existing(name) for name in args.names] or all_runs()
    if not folders:
        console.print(f"no runs in {runs_root()} yet; ./launch.sh train starts one", highlight=False, soft_wrap=True)
        return 0
    rows = [status_of(folder) for folder in folders]
    console.print(status_table(rows))
    for row in rows:
        if row.held_by:
            console.print(f"{row.name}: held by {row.held_by}", highlight=False, markup=False, soft_wrap=True)
        if row.last_event:
            console.print(f"{row.name}: {row.last_event}", highlight=False, markup=False, soft_wrap=True)
        if row.state == "failed" and row.reason:
            console.print(f"\n{row.name}: {row.reason}", highlight=False, markup=False, soft_wrap=True)
    for folder in folders if args.names else []:
        found = stored_checkpoints(folder)
        console.print(f"\n{folder.full_name}: {len(found) or 'no'} checkpoint{'' if len(found) == 1 else 's'}", highlight=False)
        if found:
            console.print(checkpoint_table(found, folder.recipe().checkpoint.keep_every))
    if args.follow:
        watch(folders[0], console)
    return 0
