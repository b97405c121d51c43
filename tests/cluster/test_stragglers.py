"""Ranks that compute longer than the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from cluster.stragglers import StragglerWatch, slow_ranks
from distributed.run_folder import RunFolder


def test_over_the_threshold() -> None:
    assert slow_ranks([1.0, 1.0, 1.29, 1.0]) == {}
    assert slow_ranks([1.0, 1.0, 1.5, 1.0]) == {2: 1.5}
    assert slow_ranks([]) == {} and slow_ranks([0.0, 0.0]) == {}


def test_only_a_rank_that_stays_slow_is_named_and_once(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    watch = StragglerWatch(run)
    slow, even = [1.0, 1.0, 1.6], [1.0, 1.0, 1.0]
    clock = itertools.count(0.0, 30.0)

    def after(*intervals: list[float]) -> list[tuple[int, str]]:
        for seconds in intervals:
            run.append_metrics({"step": 1, "loss": 1.0, "time": next(clock), "compute_seconds_by_rank": seconds})
        return watch.look()

    assert after(slow, slow, even, slow, slow) == []
    assert after(slow) == [(2, "computes 1.60 times as long as the median rank")]
    assert after(slow, slow, slow) == []


def test_a_few_short_intervals_are_an_accident(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    watch = StragglerWatch(run)
    for second in range(59):
        run.append_metrics({"step": 1, "loss": 1.0, "time": float(second), "compute_seconds_by_rank": [1.0, 1.0, 1.6]})
    assert watch.look() == []
