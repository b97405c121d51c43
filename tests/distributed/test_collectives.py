"""Named collectives: results, the order log, and errors that say who and what."""

from __future__ import annotations

import pytest
import torch
from pool import Pool, WorkerError

from distributed import collectives
from distributed.topology import Topology

ALONE = Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)


def test_results_order_and_progress(pool: Pool) -> None:
    for answer in pool.run(3, "collectives_work:one_of_each"):
        assert answer["sum"] == [0 + 1 + 2, 3]
        assert answer["gathered"] == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
        assert answer["any"] is True and answer["none"] is False
        assert answer["order"] == ["first uint8", "sum int64", "gathered float32", "any int64", "none int64"]
        assert answer["counted"] == 5 and answer["last"] == "none"


def test_uneven_rows(pool: Pool) -> None:
    """Rank r sends r + d rows to rank d, nothing from 0 to 0: rows carry 10 * sender + receiver."""
    for receiver, rows in enumerate(pool.run(3, "collectives_work:uneven_rows")):
        assert rows == [[10.0 * sender + receiver] * 2 for sender in range(3) for _ in range(sender + receiver)]


def test_rows_that_do_not_fit_are_refused_before_they_hurt() -> None:
    """gloo would deliver stale rows in silence, or abort the process."""
    with pytest.raises(ValueError, match=r"rows: rows \[2, 1\] -> \[1, 1\] do not fit tensors of 3 and 4 rows"):
        collectives.all_to_all("rows", torch.zeros(3, 1), torch.zeros(4, 1), [2, 1], [1, 1], None)


def test_one_process_asks_only_itself() -> None:
    collectives.barrier("alone", ALONE)
    assert collectives.any_rank(True, ALONE, "alone")
    assert not collectives.any_rank(False, ALONE, "alone")


def test_lost_peer_is_reported_with_rank_and_collective(pool: Pool) -> None:
    """gloo's own message names neither."""
    with pytest.raises(WorkerError, match=r"CollectiveError: rank 0: collective \d+ 'the meeting' failed"):
        pool.run(2, "topology_work:fail", rank=1, how="raise")


def test_absent_peer_is_reported_after_the_time_limit(pool: Pool) -> None:
    message = pool.run(2, "collectives_work:wait_for_an_absent_peer")[0]
    assert "rank 0: collective" in message and "'lonely' failed" in message and "Timed out" in message
