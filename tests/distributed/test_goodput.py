"""The goodput ledger: productive and lost time add up to the wall time."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed.goodput import Event, Ledger, account


def started(time: float, step: int = 0, begin: float = 0.0) -> Event:
    return Event("started", time, step, begin=begin, world=2)


def interval(time: float, step: int, steps: int = 10, skipped: int = 0, **seconds: float) -> Event:
    return Event("interval", time, step, steps=steps, skipped=skipped, seconds=seconds)


def lost(events: list[Event]) -> dict[str, float]:
    return {kind: seconds for kind, seconds in account(events)["lost"].items() if seconds}


def assert_adds_up(events: list[Event]) -> None:
    figures = account(events)
    assert figures["productive"] + sum(figures["lost"].values()) == pytest.approx(figures["wall"])


def test_an_undisturbed_run() -> None:
    events = [started(110, begin=100), interval(130, 10, forward=8, experts=4, data=3, checkpoint=4, other=1)]
    figures = account(events)
    assert figures["wall"] == 30
    assert figures["productive"] == 12
    assert figures["goodput"] == 12 / 30
    assert lost(events) == {"set_up": 10, "data": 3, "checkpoint": 4, "other": 1}
    assert_adds_up(events)


def test_time_that_the_parts_do_not_explain_is_other() -> None:
    events = [started(0), interval(10, 10, forward=7)]
    assert lost(events) == {"other": 3}
    assert_adds_up(events)


def test_steps_done_again_after_a_crash_are_lost() -> None:
    first = [started(0), interval(10, 10, forward=10), interval(20, 20, forward=10)]
    events = [*first, started(50, step=10), interval(60, 20, forward=10)]
    assert lost(events) == {"lost_steps": 10, "restart": 30}
    assert account(events)["productive"] == 20
    assert_adds_up(events)


def test_an_interval_that_straddles_the_checkpoint_is_shared() -> None:
    events = [started(0), interval(10, 10, forward=10), started(15, step=7), started(25, step=5)]
    assert lost(events) == pytest.approx({"lost_steps": 5, "restart": 15})
    assert account(events)["productive"] == pytest.approx(5)
    assert_adds_up(events)


def test_a_wait_that_was_asked_for_is_not_lost() -> None:
    first = [started(0), interval(10, 10, forward=10), Event("ended", 12, 10, seconds={"checkpoint": 2})]
    events = [*first, started(1007, step=10, begin=1000), interval(1017, 20, forward=10)]
    figures = account(events)
    assert figures["wall"] == 29
    assert lost(events) == {"checkpoint": 2, "set_up": 7}
    assert_adds_up(events)


def test_steps_without_an_update_are_not_productive() -> None:
    events = [started(0), interval(10, 10, skipped=2, forward=10)]
    assert account(events)["productive"] == 8
    assert lost(events) == {"skipped_steps": 2}


def test_a_ledger_passes_over_a_line_cut_by_a_crash(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "goodput.jsonl")
    written = [started(1), interval(2, 10, forward=0.5)]
    for event in written:
        ledger.append(event)
    with ledger.path.open("a") as file:
        file.write('{"kind": "interv')
    ledger.append(started(3))
    assert list(ledger.events()) == [*written, started(3)]


def test_an_empty_ledger() -> None:
    assert account([])["goodput"] == 0.0


def test_steps_between_the_last_logging_and_a_failure_are_lost_and_then_it_is_a_restart() -> None:
    failed = Event("failed", 26, 20, seconds={"forward": 4.0, "data": 1.0})
    events = [started(0), interval(10, 10, forward=10), interval(20, 20, forward=10), failed, started(40, step=20, begin=39)]
    assert lost(events) == {"lost_steps": 4, "data": 1, "other": 1, "restart": 14}
    assert account(events)["productive"] == 20
    assert_adds_up(events)
