"""Whether a run goes on after a failure, when, and without whom."""

from __future__ import annotations

import pytest

from cluster.events import RunEvent
from cluster.restarts import LONGEST_WAIT_SECONDS, decide, hosts_to_leave_out

NOW = 10_000.0


def failures(*steps: int, kind: str = "killed", signature: str | None = None, apart: float = 1.0) -> list[RunEvent]:
    count = len(steps)
    return [
        RunEvent(kind, NOW - apart * (count - number), step=step, signature=signature, address="10.0.0.9")
        for number, step in enumerate(steps, start=1)
    ]


def test_the_bound_counts_the_last_hour_only() -> None:
    assert decide(failures(1, 2, 3, 4, 5), 5, NOW).go_on
    over = decide(failures(1, 2, 3, 4, 5, 6), 5, NOW)
    assert not over.go_on and over.reason == "6 failures within an hour, and cluster.max_failures_an_hour is 5"
    assert decide(failures(1, 2, 3, 4, 5, 6, apart=800.0), 5, NOW).go_on
    assert not decide(failures(1), 0, NOW).go_on


def test_what_comes_again_ends_the_run() -> None:
    twice = decide(failures(7, 7, kind="crashed", signature="ValueError: #"), 5, NOW)
    assert not twice.go_on and "same failure came twice at step 7" in twice.reason
    assert decide(failures(7, 8, kind="crashed", signature="ValueError: #"), 5, NOW).go_on, "a step was gained"
    assert decide(failures(7, 7), 5, NOW).go_on, "a signal from outside need not come again"
    other = [*failures(7, kind="crashed", signature="a"), *failures(7, kind="crashed", signature="b")]
    assert decide(other, 5, NOW).go_on


WAITS = [((3,), 0), ((3, 3), 1), ((3, 3, 2), 2), ((3, 3, 3, 3), 4), ((3, 3, 3, 5), 0), ((3, 3, 5, 5), 1)]


@pytest.mark.parametrize(("steps", "seconds"), WAITS)
def test_the_wait_grows_until_a_step_is_gained(steps: tuple[int, ...], seconds: float) -> None:
    assert decide(failures(*steps), 99, NOW).wait_seconds == seconds


def test_the_wait_has_an_end() -> None:
    assert decide(failures(*[3] * 40), 99, NOW).wait_seconds == LONGEST_WAIT_SECONDS


def test_growth_and_recovery_are_no_failures() -> None:
    assert decide([RunEvent("grows", NOW), RunEvent("recovered", NOW), RunEvent("started", NOW)], 0, NOW).go_on


def test_a_host_that_fails_again_and_again() -> None:
    other = RunEvent("killed", NOW, address="10.0.0.10")
    assert hosts_to_leave_out([*failures(1, 2, 3), other], 3, NOW) == set()
    assert hosts_to_leave_out([*failures(1, 2, 3, 4), other], 3, NOW) == {"10.0.0.9"}
    assert hosts_to_leave_out(failures(1, 2, 3, 4), 3, NOW + 3600.0) == set(), "an hour later it may come back"
