"""A run started by the launcher, under signals: a real Ray, real rank processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.run_lock import is_held
from cluster.run_status import status_of
from distributed.run_folder import RunFolder

HERE = Path(__file__).resolve().parent
PATIENCE_SECONDS = 240.0

LAUNCH = """
import sys
from pathlib import Path
from rich.console import Console
from cluster.launcher import Start, launch
from cluster.run_lock import RunLock
from cluster.worker_group import GroupPlan
from distributed.run_folder import RunFolder

run = RunFolder(Path(sys.argv[1]))
with RunLock(run) as lock:
    sys.exit(launch(Start(run, run.recipe(), GroupPlan(2, 1.0), target="group_target:until_stopped"), lock, Console()))
"""


def test_a_signal_to_the_whole_terminal_stops_in_good_order(make_run: Callable[..., RunFolder]) -> None:
    """SIGINT reaches the launcher's process group, as Ctrl-C does: Ray and the ranks must not hear it."""
    run = make_run("a")
    launcher = start_launcher(run)
    wait_for(lambda: at_work(run))
    os.killpg(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 75, output
    assert "stopping after this step" in output and "./launch.sh resume a" in output
    assert status_of(run).state == "stopped" and not run.stop_path.exists()


def test_a_killed_launcher_leaves_nothing(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    launcher = start_launcher(run)
    wait_for(lambda: at_work(run))
    ranks = [int((run.path / f"pid-{rank}").read_text()) for rank in range(2)]
    assert all(lives(rank) for rank in ranks) and status_of(run).state == "running"
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not any(lives(rank) for rank in ranks))
    wait_for(lambda: not is_held(run))
    assert status_of(run).state in ("failed", "lost")


def at_work(run: RunFolder) -> bool:
    """Whether both ranks have begun."""
    state = run.read_state()
    assert state["state"] != "failed", state["reason"]
    return state["state"] == "running" and (run.path / "pid-1").exists()


def start_launcher(run: RunFolder) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    command = [sys.executable, "-c", LAUNCH, str(run.path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for(condition: Callable[[], bool]) -> None:
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
