"""What a rank's actor does beside Ray: its folder in memory, the fork server, ranks from their start to their outcome."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elastic_target import STEPS
from launching import lives, wait_for

from cluster.child import Outcome
from cluster.rank_process import RankProcess, RankTask, own_folder, rank_log
from distributed import heartbeat
from distributed.run_folder import RunFolder

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


@pytest.fixture
def process(make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch) -> Iterator[RankProcess]:
    """An actor without Ray, in run `a`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    process = RankProcess(str(make_run("a").path))
    yield process
    process.close()
    assert not process.folder.exists()


def start(process: RankProcess, *arguments: str, **accidents: str) -> None:
    (process.run.path / "accidents.json").write_text(json.dumps(accidents))
    server = process.serve_forks(environment(), TARGET)
    process.start(RankTask(0, environment(MASTER_PORT=str(time.monotonic_ns())), (*TARGET, *arguments), server))


def outcome_of(process: RankProcess) -> Outcome:
    wait_for(lambda: process.report().outcome is not None)
    outcome = process.report().outcome
    assert outcome is not None
    return outcome


def test_ranks_are_forked_one_after_the_other(process: RankProcess) -> None:
    start(process, **{"0@9": "kill"})
    assert outcome_of(process).code == -signal.SIGKILL
    pulse = process.report().pulse
    assert pulse is not None and pulse.step == 9
    start(process, "--resume")
    outcome = outcome_of(process)
    assert (outcome.code, outcome.result, outcome.error) == (0, "finished", None)
    servers = re.findall(r"fork server \d+ is ready", next(process.run.logs.glob("fork-server-*.log")).read_text())
    assert len(servers) == 1
    assert len(re.findall("--- rank 0 starts", rank_log(process.run, 0).read_text())) == 2


def test_an_error_comes_back_in_words(process: RankProcess) -> None:
    start(process, **{"0@2": "mistake"})
    outcome = outcome_of(process)
    assert (outcome.code, outcome.error) == (2, "train.lr is wrong; mend it")
    assert "train.lr is wrong" in rank_log(process.run, 0).read_text()


def test_a_rank_ends_with_its_server_and_the_next_start_has_another(process: RankProcess) -> None:
    start(process, **{"0@3": "wait"})
    wait_for(lambda: (process.run.path / "happened-0-3").exists())
    assert process.child is not None and process.child.pid is not None and process.server is not None
    rank = process.child.pid
    process.server.kill()
    assert "fork server of its host has ended" in (outcome_of(process).error or "")
    wait_for(lambda: not lives(rank))
    start(process, "--resume")
    assert outcome_of(process).result == "finished"


def test_a_rank_is_ended_with_its_children(process: RankProcess) -> None:
    start(process, **{"0@3": "child"})
    wait_for(lambda: (process.run.path / "child").exists())
    process.kill()
    assert outcome_of(process).code == -signal.SIGKILL
    assert not lives(int((process.run.path / "child").read_text()))


def test_a_rank_ended_before_it_was_forked_does_nothing(process: RankProcess) -> None:
    start(process)
    process.kill()  # the server still imports
    assert outcome_of(process).code is None
    start(process)
    assert outcome_of(process).result == "finished"
    steps = [json.loads(line)["step"] for line in (process.run.path / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.skipif(shutil.which("cc") is None, reason="makes a stand-in for CUDA's driver with a C compiler")
def test_where_a_driver_was_started_ranks_are_fresh_processes(
    process: RankProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = "int cuDeviceGetCount(int *count) { return 0; }"  # 0: success, so cuInit was called
    subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", str(tmp_path / "libcuda.so.1")], input=driver, text=True, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    start(process, **{"0@3": "child"})
    wait_for(lambda: (process.run.path / "child").exists())
    assert process.child is not None and "cluster.worker" in command_of(process.child.pid)
    process.kill()
    assert outcome_of(process).code == -signal.SIGKILL and not lives(int((process.run.path / "child").read_text()))
    start(process, "--resume")
    assert outcome_of(process).result == "finished"


def command_of(process: int | None) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_the_age_of_a_pulse_is_measured_on_its_own_host(make_run: Callable[..., RunFolder]) -> None:
    path = make_run("a").path / "beat"
    heartbeat.write_pulse(path, heartbeat.Pulse(time.time() - 5.0, step=3, first=1))
    found = heartbeat.read_pulse(path)
    assert found is not None and found.in_training and found.step == 3
    path.write_text('{"time":')
    assert heartbeat.read_pulse(path) is None
