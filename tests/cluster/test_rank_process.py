"""What a rank's actor does beside Ray: its folder in memory, the fork server, ranks from their start to their outcome."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import CODE_ROOT
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
    assert len(re.findall(r"fork server \d+ is ready .* ranks are forked from it", server_log(process))) == 1
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
    error = outcome_of(process).error or ""
    assert "fork server of its host has ended" in error and "logs/fork-server-" in error
    wait_for(lambda: not lives(rank))
    start(process, "--resume")
    assert outcome_of(process).result == "finished"


def test_a_rank_is_ended_with_its_children(process: RankProcess) -> None:
    start(process, **{"0@3": "child"})
    wait_for(lambda: (process.run.path / "child").exists())
    process.kill()
    assert outcome_of(process).code == -signal.SIGKILL
    child = int((process.run.path / "child").read_text())
    wait_for(lambda: not lives(child))  # killed with the rank, but it ends by itself


def test_what_a_rank_leaves_behind_when_it_dies_is_ended(process: RankProcess) -> None:
    start(process, **{"0@3": "child", "0@4": "wait"})
    wait_for(lambda: (process.run.path / "child").exists())
    assert process.child is not None
    process.child.signal(signal.SIGKILL)
    assert outcome_of(process).code == -signal.SIGKILL
    wait_for(lambda: not lives(int((process.run.path / "child").read_text())))


def test_a_rank_ended_before_it_was_forked_does_nothing(process: RankProcess) -> None:
    start(process)
    with suppress(TimeoutError):
        process.kill()  # the server still imports
    assert outcome_of(process).result is None
    start(process)
    assert outcome_of(process).result == "finished"
    steps = [json.loads(line)["step"] for line in (process.run.path / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


DRIVER = """
#include <unistd.h>
static pid_t started_by;
__attribute__((constructor)) static void start(void) { started_by = getpid(); }
int cuDeviceGetCount(int *count) { return getpid() == started_by ? 0 : 3; }
"""
"""CUDA's driver as a fork sees it: started in the process that loaded it, and not in one that was forked from that."""


@pytest.mark.skipif(shutil.which("cc") is None, reason="makes a stand-in for CUDA's driver with a C compiler")
def test_where_a_driver_was_started_ranks_are_fresh_processes(
    process: RankProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    start(process, **{"0@3": "child"})
    wait_for(lambda: (process.run.path / "child").exists())
    assert process.child is not None and "cluster.worker" in command_of(process.child.pid)
    assert "ranks are fresh processes: an import started CUDA's driver" in server_log(process)
    process.kill()
    assert outcome_of(process).code == -signal.SIGKILL and not lives(int((process.run.path / "child").read_text()))
    start(process, "--resume")
    assert outcome_of(process).result == "finished"


def test_the_trainer_can_be_imported_without_what_hinders_a_fork() -> None:
    """And what it loads later is loaded ahead: the engine, and the compiler that torch's optimizers load when made."""
    code = """
import sys
from pathlib import Path
from cluster.fork_server import import_all
assert import_all("distributed.trainer:train", Path(sys.argv[1])) is None
assert {"deepspeed.runtime.engine", "torch._dynamo", "torch.utils.tensorboard"} <= set(sys.modules)
"""
    folder = CODE_ROOT / "configs"
    with tempfile.TemporaryDirectory() as run:
        shutil.copy(folder / "quickstart.yaml", Path(run) / "recipe.yaml")
        subprocess.run([sys.executable, "-c", code, run], check=True, cwd=CODE_ROOT)


def server_log(process: RankProcess) -> str:
    return next(process.run.logs.glob("fork-server-*.log")).read_text()


def command_of(process: int | None) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_pulse_comes_back_whole_or_not_at_all(make_run: Callable[..., RunFolder]) -> None:
    path = make_run("a").path / "beat"
    heartbeat.write_pulse(path, heartbeat.Pulse(time.time() - 5.0, step=3, first=1))
    found = heartbeat.read_pulse(path)
    assert found is not None and found.in_training and found.step == 3
    path.write_text('{"time":')
    assert heartbeat.read_pulse(path) is None
