"""What a rank's actor does beside Ray: its folder in memory, and which spare it may use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launching import wait_for

from cluster.rank_process import RankProcess, RankTask, own_folder, rank_log
from distributed import heartbeat
from distributed.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TARGET = ("--target", "elastic_target:count")


def test_what_a_killed_process_left_in_memory_is_removed() -> None:
    gone = subprocess.Popen(
        [sys.executable, "-c", "from cluster.rank_process import own_folder; print(own_folder())"], stdout=subprocess.PIPE
    )
    left = Path(gone.communicate()[0].decode().strip())
    assert left.is_dir()
    mine, again = own_folder(), own_folder()
    assert not left.exists() and mine.is_dir(), "only the folders of living processes stay"
    mine.rmdir()
    again.rmdir()


def environment(**more: str) -> dict[str, str]:
    return {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1", "OMP_NUM_THREADS": "1", **more}


def test_a_spare_takes_the_place_of_a_killed_rank(make_run: Callable[..., RunFolder], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    run = make_run("a")
    (run.path / "accidents.json").write_text('{"0@9": "kill"}')
    process = RankProcess(str(run.path))
    try:
        process.start(RankTask(0, environment(), TARGET, spare=True))
        wait_for(lambda: process.report().outcome is not None)
        assert process.report().outcome.code == -9 and process.report().pulse.step == 9  # type: ignore[union-attr]
        spare = process.spare
        assert spare is not None
        wait_for(lambda: "is warm" in (run.logs / "spares.log").read_text())
        process.start(RankTask(0, environment(MASTER_PORT="2"), (*TARGET, "--resume"), spare=True))
        assert process.child is spare
        wait_for(lambda: process.report().outcome is not None)
        assert process.report().outcome.result == "finished"  # type: ignore[union-attr]
        assert "starts, in a warm process" in rank_log(run, 0).read_text()
    finally:
        process.close()
    assert not process.folder.exists()


def test_a_spare_with_other_threads_is_of_no_use(make_run: Callable[..., RunFolder]) -> None:
    process = RankProcess(str(make_run("a").path))
    process.task = RankTask(0, environment(), TARGET)
    process.spare = stand_in = _Idle()  # type: ignore[assignment]
    assert process._take_spare(RankTask(0, environment(OMP_NUM_THREADS="2"), TARGET)) is None
    assert stand_in.killed
    process.close()


class _Idle:
    outcome = None
    killed = False

    def kill(self) -> None:
        self.killed = True


def test_the_age_of_a_pulse_is_measured_on_its_own_host(make_run: Callable[..., RunFolder]) -> None:
    path = make_run("a").path / "beat"
    heartbeat.write_pulse(path, heartbeat.Pulse(time.time() - 5.0, step=3, first=1))
    found = heartbeat.read_pulse(path)
    assert found is not None and found.in_training and found.step == 3
    path.write_text('{"time":')
    assert heartbeat.read_pulse(path) is None
