"""The table of runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.cli import main
from cluster.run_lock import RunLock
from cluster.run_status import status_of
from distributed.run_folder import RunFolder, all_runs


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_at_work_without_a_process_is_lost(state: str, make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", state, step=7, steps=20, loss=1.5, tokens_per_second=9.0)
    assert status_of(run).state == "lost"
    with RunLock(run):
        assert status_of(run).state == state


def test_asked_to_stop(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "running")
    run.stop_path.touch()
    with RunLock(run):
        assert status_of(run).state == "stopping"


@pytest.mark.parametrize("state", ["stopped", "finished", "failed"])
def test_an_ended_run_keeps_its_state(state: str, make_run: Callable[..., RunFolder]) -> None:
    assert status_of(make_run("a", state)).state == state


def test_a_run_of_a_comparison_is_at_work_while_that_is(make_run: Callable[..., RunFolder]) -> None:
    run, failed = make_run("set/a", "running"), make_run("set/b", "failed")
    assert run.comparison is not None and (status_of(run).name, status_of(run).state) == ("set/a", "lost")
    with RunLock(run.comparison):
        assert (status_of(run).state, status_of(failed).state) == ("running", "failed")


@pytest.mark.parametrize("command", ["stop", "resume"])
def test_a_run_of_a_comparison_is_not_driven_alone(
    command: str, make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("set/a", "stopped", checkpoints=(3,))
    assert main([command, "set/a"]) == 2
    assert "run 'set/a' belongs to comparison 'set'" in capsys.readouterr().err


def test_table(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "no runs" in capsys.readouterr().out
    make_run("first", "finished", step=20, steps=20, loss=1.25, tokens_per_second=1234.0, goodput=0.834)
    make_run("second", "failed", step=3, steps=20, loss=None, reason="rank 1 died [oom]")
    make_run("set/third", "stopped")
    assert [run.full_name for run in all_runs()] == ["first", "second", "set/third"]
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:6] == ["first", "finished", "20/20", "1.2500", "1,234", "83%"]
    assert lines[2].split()[:6] == ["second", "failed", "3/20", "-", "-", "-"]
    assert lines[3].split()[:2] == ["set/third", "stopped"]
    assert "second: rank 1 died [oom]" in lines
