"""One run of a comparison, in a process of its own: from its newest checkpoint to its last step, or until it is asked to stop.

    python -m cluster.comparison.piece RUN_FOLDER --parent PID --at-once N

A process a run, under Ray too: its peak memory is its own, and its words go to the run's log.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from cluster.exit_codes import DONE
from cluster.lifeline import die_with_parent
from cluster.rank_process import rank_log
from cluster.recipes import CODE_ROOT
from data_pipeline.files import write_text
from distributed.run_folder import RunFolder, project_root

MACHINE_FILE = "machine.json"


def start_piece(folder: Path, at_once: int, home: str | None = None) -> subprocess.Popen[bytes]:
    """Start the process, which dies with this one. One thread: several share the machine's cores.

    Args:
        folder: of a run whose recipe is in it.
        at_once: how many runs share the machine, noted with the run.
        home: MOOTRON_HOME of the process; None: this process's.
    """
    run = RunFolder(folder)
    path = os.pathsep.join(filter(None, (str(CODE_ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "MOOTRON_HOME": home or str(project_root()), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", "-m", "cluster.comparison.piece", str(folder), "--parent", str(os.getpid()), "--at-once", str(at_once)]
    with rank_log(run, 0).open("ab") as log:
        return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def main(argv: list[str]) -> int:
    """Train; the run's state says how it ended."""
    parser = argparse.ArgumentParser(prog="cluster.comparison.piece")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    run = RunFolder(args.folder)
    try:
        from cluster.comparison.machine import describe_machine
        from distributed.trainer import train

        write_text(run.path / MACHINE_FILE, json.dumps(describe_machine(args.at_once)))
        train(run.recipe(), run, resume=True)
    except Exception as fault:
        run.change_state("failed", reason=f"{type(fault).__name__}: {fault}")
        raise
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
