"""The pool of test workers: what a failing rank looks like, and that the pool goes on."""

from __future__ import annotations

import pytest
from pool import Pool, WorkerError


def test_ranks_see_their_launcher_variables(pool: Pool) -> None:
    expected = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"} for rank in range(2)]
    assert pool.run(2, "topology_work:environment") == expected


@pytest.mark.parametrize(
    ("world", "how", "seconds", "message"),
    [
        (2, "raise", 60, r"rank 1 raised:\n(.|\n)*ValueError: the reason"),
        (2, "die", 60, "rank 1 died with exit code 7"),
        (1, "sleep", 2, r"rank 0 gave no answer \(limit 2 s\)(.|\n)*topology_work.py(.|\n)* in fail\n"),
    ],
)
def test_failing_rank_is_named_and_the_pool_goes_on(pool: Pool, world: int, how: str, seconds: float, message: str) -> None:
    pool.run(world, "topology_work:environment")
    with pytest.raises(WorkerError, match=message):
        pool.run(world, "topology_work:fail", rank=world - 1, how=how, timeout=seconds)
    assert len(pool.run(world, "topology_work:environment")) == world
