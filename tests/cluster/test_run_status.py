"""The table of runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.cli import main
from cluster.run_lock import RunLock
from cluster.run_status import all_runs, status_of
from distributed.run_folder import RunFolder


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


def test_table(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "no runs" in capsys.readouterr().out
    make_run("first", "finished", step=20, steps=20, loss=1.25, tokens_per_second=1234.0, goodput=0.834)
    make_run("second", "failed", step=3, steps=20, loss=None, reason="rank 1 died [oom]")
    assert [run.name for run in all_runs()] == ["first", "second"]
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:6] == ["first", "finished", "20/20", "1.2500", "1,234", "83%"]
    assert lines[2].split()[:6] == ["second", "failed", "3/20", "-", "-", "-"]
    assert "second: rank 1 died [oom]" in lines
