"""Ranks that compute longer than the others, who then wait for them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cluster.metrics_tail import MetricsTail
from distributed.run_folder import RunFolder

THRESHOLD = 1.3  # times the median
INTERVALS = 3  # in a row: one slow interval is an accident


def slow_ranks(seconds_W: Sequence[float]) -> dict[int, float]:
    """Ranks whose own compute time is over THRESHOLD times the median, with the ratio."""
    median = statistics.median(seconds_W) if seconds_W else 0.0
    if median <= 0.0:
        return {}
    return {rank: seconds / median for rank, seconds in enumerate(seconds_W) if seconds > THRESHOLD * median}


class StragglerWatch:
    """Reads the compute time of every rank from metrics.jsonl; names a rank once."""

    def __init__(self, run: RunFolder) -> None:
        self.tail = MetricsTail(run.metrics_path)
        self.slow_for: dict[int, int] = {}
        self.named: set[int] = set()

    def look(self) -> list[tuple[int, str]]:
        """Ranks found slow for INTERVALS logging intervals in a row, with words."""
        found = []
        for figures in self.tail.read():
            slow = slow_ranks(figures.get("compute_seconds_by_rank", ()))
            self.slow_for = {rank: self.slow_for.get(rank, 0) + 1 for rank in slow} if "loss" in figures else self.slow_for
            for rank, count in self.slow_for.items():
                if count >= INTERVALS and rank not in self.named:
                    self.named.add(rank)
                    found.append((rank, f"computes {slow[rank]:.2f} times as long as the median rank" if rank in slow else "computes long"))
        return found
