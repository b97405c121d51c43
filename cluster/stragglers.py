"""Ranks that compute longer than the others, who then wait for them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cluster.metrics_tail import MetricsTail
from distributed.run_folder import RunFolder

THRESHOLD = 1.3  # times the median
INTERVALS = 3  # in a row: one slow interval is an accident
SPAN_SECONDS = 60.0


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
        self.slow: dict[int, list[float]] = {}
        """Times of the intervals in a row in which a rank was slow."""
        self.named: set[int] = set()

    def look(self) -> list[tuple[int, str]]:
        """Ranks found slow for INTERVALS logging intervals in a row, over SPAN_SECONDS at least, with words."""
        found = []
        for figures in self.tail.read():
            if "compute_seconds_by_rank" not in figures:
                continue
            ratios = slow_ranks(figures["compute_seconds_by_rank"])
            self.slow = {rank: [*self.slow.get(rank, []), figures["time"]] for rank in ratios}
            for rank, times in self.slow.items():
                if rank not in self.named and len(times) >= INTERVALS and times[-1] - times[0] >= SPAN_SECONDS:
                    self.named.add(rank)
                    found.append((rank, f"computes {ratios[rank]:.2f} times as long as the median rank"))
        return found
