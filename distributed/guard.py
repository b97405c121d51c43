"""Watches the losses and gradients of a run for trouble that training on would not mend.

Pure: it is told what every step did and says when that is trouble. What is done about it is the trainer's.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from distributed.run_config import GuardConfig

LEAST_LOSSES = 10
"""A median of fewer steps is no ground to call a loss a spike."""


@dataclass(frozen=True)
class Trouble:
    """Steps `first` to `last` (counted from 0) that went wrong, and how."""

    first: int
    last: int
    reason: str


class Guard:
    """Equal on all ranks, because it is told global figures only."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._not_finite = 0
        self._high: list[int] = []
        self._losses: deque[float] = deque(maxlen=config.spike_window)

    def watch(self, step: int, loss: float, skipped: bool) -> Trouble | None:
        """What step `step` did: its global loss in nats, and whether its gradient was not finite, so that it was skipped."""
        if skipped or not math.isfinite(loss):
            return self._count_not_finite(step)
        self._not_finite = 0
        return self._compare(step, loss)

    def _count_not_finite(self, step: int) -> Trouble | None:
        self._not_finite += 1
        if self._not_finite < self._config.not_finite_in_a_row:
            return None
        return Trouble(step - self._not_finite + 1, step, f"gradients were not finite in {self._not_finite} steps in a row")

    def _compare(self, step: int, loss: float) -> Trouble | None:
        spike = self._config.spike_nats
        if spike is None or len(self._losses) < LEAST_LOSSES or loss <= (usual := statistics.median(self._losses)) + spike:
            self._high = []
            self._losses.append(loss)
            return None
        self._high.append(step)  # a spike does not raise what it is measured against
        if len(self._high) < self._config.spike_steps:
            return None
        words = f"the loss was {loss:.3f}, more than {spike:g} nats above its median {usual:.3f}, for {len(self._high)} steps in a row"
        return Trouble(self._high[0], step, words)
