"""A run started by the launcher under a private Ray, and a signal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest
from launching import PATIENCE_SECONDS, at_work, start_launcher, wait_for

from cluster.events import read_events
from cluster.run_status import status_of
from distributed.run_folder import RunFolder


@pytest.mark.ray
def test_a_signal_to_the_whole_terminal_stops_in_good_order(make_run: Callable[..., RunFolder]) -> None:
    """SIGINT reaches the launcher's process group, as Ctrl-C does: Ray and the ranks must not hear it. Nor must another run."""
    run, other = make_run("a"), make_run("b")
    launcher, beside = start_launcher(run), start_launcher(other)
    wait_for(lambda: at_work(run) and at_work(other))
    os.killpg(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 75, output
    assert "stopping after this step" in output and "./launch.sh resume a" in output
    assert status_of(run).state == "stopped" and not run.stop_path.exists()
    assert status_of(other).state == "running", "two runs on one machine do not touch each other"
    other.stop_path.touch()
    beside.communicate(timeout=PATIENCE_SECONDS)
    assert beside.returncode == 75


@pytest.mark.ray
def test_a_lost_head_and_a_killed_driver_are_replaced(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    (run.path / "accidents.json").write_text(json.dumps({"0@4": "head", "1@8": "driver"}))
    launcher = start_launcher(run, target="elastic_target:count")
    output, _ = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 0, output
    lost = [event.reason for event in read_events(run) if event.kind == "driver lost"]
    assert lost[0] == "Ray's head is gone" and (lost[1] or "").startswith("killed by SIGKILL"), lost
    steps = [json.loads(line)["step"] for line in (run.path / "steps.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 7, 8, 9, 10, 11, 12], "from the newest checkpoint each time"
    assert "another starts" in output and status_of(run).state == "finished"
