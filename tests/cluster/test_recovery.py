"""A real run on one machine: a rank is killed, the run goes on in time; then the launcher is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import PATIENCE_SECONDS, wait_for

from cluster.events import read_events
from cluster.run_status import status_of
from distributed.run_folder import RunFolder
from distributed.summary import run_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))
from small_run import recipe_values, write_corpus

ROOT = Path(__file__).resolve().parents[2]
RECOVERY_SECONDS = 20.0
"""From SIGKILL to the first step beyond the last one finished before it."""


def start_run(home: Path) -> subprocess.Popen[str]:
    write_corpus(home)
    values = recipe_values(home, steps=100_000)
    values |= {"name": "real", "checkpoint": {"every": 10, "keep_last": 2}, "cluster": {"workers": 2}}
    values["validation"]["every"] = 100_000
    values["data"]["loader_workers"] = 1  # comes back with the rank
    (home / "real.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-P", "-m", "cluster", "train", str(home / "real.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def steps_of(run: RunFolder) -> list[int]:
    return [line["step"] for line in run_lines(run) if "loss" in line]  # the last line may be half written


def process_of(run: RunFolder, rank: int) -> int:
    """The rank's process, as the system knows it: forked from the run's server, named after its rank."""
    for entry in Path("/proc").glob("[0-9]*/comm"):
        try:
            if entry.read_text() == f"rank-{rank}\n" and str(run.path).encode() in (entry.parent / "cmdline").read_bytes():
                return int(entry.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.ray
@pytest.mark.alone
def test_a_killed_rank_costs_less_than_the_bar_and_sigterm_stops_in_good_order(home: Path) -> None:
    launcher = start_run(home)
    run = RunFolder.named("real")
    try:
        wait_for(lambda: launcher.poll() is None and len(steps_of(run)) > 12)
        before = steps_of(run)[-1]
        os.kill(process_of(run, 1), signal.SIGKILL)
        wait_for(lambda: any(event.kind == "recovered" for event in read_events(run)))
        launcher.terminate()
        output, _ = launcher.communicate(timeout=PATIENCE_SECONDS)
    finally:
        launcher.kill()
    recovered = next(event for event in read_events(run) if event.kind == "recovered")
    print(f"{recovered.seconds} s: {recovered.parts}")
    assert recovered.seconds <= RECOVERY_SECONDS, recovered.parts
    assert (recovered.step or 0) > before and abs(sum(recovered.parts.values()) - recovered.seconds) < 0.1
    steps = steps_of(run)
    assert steps == list(range(1, steps[-1] + 1)), "every step once in what the run keeps"
    assert launcher.returncode == 75, output
    assert status_of(run).state == "stopped" and (run.checkpoints / f"step-{steps[-1]:08d}").is_dir()
    assert "goes on at step" in output and "killed: rank" in output
