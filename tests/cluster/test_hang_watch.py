"""Who keeps a group that stands still."""

from __future__ import annotations

from cluster.child import Outcome
from cluster.hang_watch import HangWatch
from cluster.rank_process import RankReport
from distributed.heartbeat import Pulse


def report(rank: int, step: int, number: int, age: float = 0.1, first: int | None = 0, **fields: object) -> RankReport:
    return RankReport(rank, None, Pulse(100.0, step, first, number, "dispatch", "forward"), age, **fields)  # type: ignore[arg-type]


def looks(watch: HangWatch, *moments: tuple[float, list[RankReport]]) -> list[object]:
    return [watch.look(reports, now) for now, reports in moments]


def test_movement_of_any_rank_puts_it_off() -> None:
    watch = HangWatch(10.0, 100.0, now=0.0)
    found = looks(watch, (1.0, [report(0, 1, 5), report(1, 1, 5)]), (10.0, [report(0, 1, 5), report(1, 1, 6)]))
    assert found == [None, None]
    assert watch.look([report(0, 1, 5), report(1, 1, 6)], 20.0) is None
    hang = watch.look([report(0, 1, 5), report(1, 1, 6)], 20.1)
    assert hang is not None and (hang.kind, hang.rank, hang.step) == ("hung", 0, 1), "the lowest number keeps the others"
    assert "after step 1, in part 'forward', last entered collective 5 'dispatch'" in hang.reason


def stuck(*reports: RankReport) -> object:
    watch = HangWatch(10.0, 100.0, now=0.0)
    watch.look(list(reports), 0.0)
    return watch.look(list(reports), 11.0)


def test_the_silent_one_comes_first() -> None:
    assert stuck(report(0, 1, 5), report(1, 1, 9, age=8.0)).rank == 1  # type: ignore[attr-defined]
    assert "SIGSTOP" in stuck(report(0, 1, 5), report(1, 1, 9, stopped=True)).reason  # type: ignore[attr-defined]
    assert "host does not answer" in stuck(report(0, 1, 5), report(1, 1, 9, heard=False)).reason  # type: ignore[attr-defined]


def test_all_at_the_same_place_is_nobodys_fault() -> None:
    hang = stuck(report(0, 1, 5), report(1, 1, 5))
    assert hang.rank is None and "all ranks stand at the same place" in hang.reason  # type: ignore[attr-defined]


def test_a_rank_that_has_ended_is_not_the_culprit() -> None:
    ended = RankReport(1, Outcome(1, "host", 1.0, 0, "finished"), Pulse(1.0, 1, 0, 1))
    assert stuck(report(0, 1, 5), ended).rank == 0  # type: ignore[attr-defined]


def test_the_first_step_has_its_own_limit() -> None:
    watch = HangWatch(10.0, 100.0, now=0.0)
    waiting = [report(0, 6, 2, first=6), RankReport(1)]
    assert watch.look(waiting, 99.0) is None
    hang = watch.look(waiting, 101.0)
    assert hang is not None and (hang.kind, hang.rank) == ("slow start", 1) and "it has not begun" in hang.reason
    watch = HangWatch(10.0, 100.0, now=0.0)
    assert looks(watch, (99.0, [report(0, 7, 3, first=6)]), (108.0, [report(0, 7, 3, first=6)])) == [None, None]
    assert watch.look([report(0, 7, 3, first=6)], 109.5) is not None
