"""The table of runs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from cluster.cli import main
from cluster.run_lock import RunLock, lock_path
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


def hold_elsewhere(run: RunFolder) -> None:
    """A lock as another host would have left it, early on 2 January 1970."""
    lock_path(run).write_text(json.dumps({"pid": 1, "host": "another", "time": 86400.0 + 43200.0}))


def test_who_holds_a_run_elsewhere_is_told(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("a", "set/b", "c"):
        run = make_run(place, "finished" if place == "c" else "running")
        hold_elsewhere(run.comparison or run)
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["a", "running"], ["c", "finished"], ["set/b", "running"]]
    assert "a: held by another since 1970-01-0" in out and "set/b: held by another since" in out and "c: held" not in out


def test_stop_says_who_holds_the_run_and_ends_with_its_state(
    make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("a", "running", step=5)
    hold_elsewhere(run)
    assert main(["stop", "a", "--timeout", "0"]) == 2
    told = capsys.readouterr()
    assert "held by another since" in told.out and "./launch.sh resume a goes on" in told.out
    assert "has not ended after 0 s, held by another since" in told.err
    run.write_state("stopped", step=6)
    assert main(["stop", "a", "--timeout", "0"]) == 2
    assert "not at work (state: stopped)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['"running"', "[]", "7", "{}", '{"state": "dancing"}', '{"state": "run'])
def test_a_damaged_state_hides_no_run(text: str, make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("a", "running")
    (run.path / "state.json").write_text(text)
    make_run("b", "finished")
    assert main(["status"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [["a", "lost"], ["b", "finished"]]


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
