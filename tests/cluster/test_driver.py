"""What the driver makes of the ranks' ends."""

from __future__ import annotations

from collections.abc import Callable

from cluster.driver import conclude
from cluster.rank_process import Outcome
from distributed.run_folder import RunFolder


def test_all_finished(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "running", step=9, loss=1.0)
    assert conclude(run, [Outcome(rank, "host", 0.0, 0, "finished") for rank in range(2)]) == 0
    state = run.read_state()
    assert (state["state"], state["step"], state["loss"]) == ("finished", 9, 1.0)


def test_all_stopped_wants_a_resume(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "running")
    assert conclude(run, [Outcome(0, "host", 0.0, 0, "stopped")]) == 75
    assert run.read_state()["state"] == "stopped"


def test_a_crash_after_the_result_does_not_count(make_run: Callable[..., RunFolder]) -> None:
    assert conclude(make_run("a", "running"), [Outcome(0, "host", 0.0, -6, "finished")]) == 0


def test_the_first_to_die_is_named_with_the_end_of_its_log(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "running", step=9)
    (run.logs / "rank-00001.log").write_text("\n".join(f"line {number}" for number in range(40)))
    outcomes = [Outcome(0, "left", 20.0, 1, None, "RuntimeError: connection closed"), Outcome(1, "right", 10.0, -9)]
    assert conclude(run, outcomes) == 1
    state = run.read_state()
    assert (state["state"], state["step"]) == ("failed", 9)
    assert state["reason"].startswith("rank 1 on right failed: killed by SIGKILL")
    assert state["reason"].endswith("  | line 39") and "line 3\n" not in state["reason"]


def test_a_users_mistake_is_its_message_alone(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "running")
    assert conclude(run, [Outcome(0, "host", 1.0, 2, None, "train.lr is wrong; mend it")]) == 2
    assert run.read_state()["reason"] == "train.lr is wrong; mend it"


def test_a_rank_without_a_result(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "running")
    assert conclude(run, [Outcome(0, "host", 1.0, 3)]) == 1
    assert "exit code 3 without a result" in run.read_state()["reason"]
