"""Launchers as processes of their own, for tests that send them signals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distributed.run_folder import RunFolder

HERE = Path(__file__).resolve().parent
PATIENCE_SECONDS = 240.0

# A shell's background job has SIGINT ignored and its children inherit that; a terminal's program has not.
LAUNCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from rich.console import Console
from cluster.launcher import Start, launch
from cluster.run_lock import RunLock
from cluster.group_plan import GroupPlan
from distributed.cluster_config import ClusterConfig
from distributed.run_folder import RunFolder

run, address = RunFolder(Path(sys.argv[1])), sys.argv[2] or None
recipe = run.recipe().model_copy(update={"cluster": ClusterConfig(address=address, preflight=False)})
with RunLock(run) as lock:
    sys.exit(launch(Start(run, recipe, GroupPlan(2, 1.0), target=sys.argv[3]), lock, Console()))
"""


def at_work(run: RunFolder) -> bool:
    """Whether both ranks have begun."""
    state = run.read_state()
    assert state["state"] != "failed", state["reason"]
    return state["state"] == "running" and (run.path / "pid-1").exists()


def start_launcher(run: RunFolder, address: str | None = None, target: str = "group_target:until_stopped") -> subprocess.Popen[str]:
    """A launcher of two ranks that run `target`, under a private Ray or the one at `address`."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    command = [sys.executable, "-c", LAUNCH, str(run.path), address or "", target]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fail when patience is at an end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def lives(process: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
