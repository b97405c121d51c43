"""Where the time of a step goes: every moment belongs to exactly one part, so that the parts add up to the wall clock.

    clock = StepClock(device)
    with clock.part("forward"):
        ...                       # spans of kernels/ and model/ (experts, attention, dispatch) nest in here
    seconds = clock.read()        # {"forward": ..., "experts": ..., "other": ...} since the last read

Times are exclusive: while `experts` is open inside `forward`, time runs for `experts` alone. Spans inside anything but
forward and backward stay with the part around them, so a validation is not mistaken for training.

On a GPU the marks are events on the current stream, so a part is charged with what the device did and not with how fast the
host could queue it; a wait of the host shows only where the device ran dry. On a CPU they are readings of the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from kernels import spans

STEP_PARTS = ("data", "forward", "attention", "dispatch", "experts", "backward", "optimizer", "logging", "other")
"""What a training step is made of. `forward` and `backward` are what remains beside attention, dispatch and experts."""

PARTS = (*STEP_PARTS, "validation", "checkpoint")
"""All parts; the last two are no part of a step, though the copy of a checkpoint may end just before an optimizer's step."""

_SPLIT = ("forward", "backward")
_MAX_PENDING_EVENTS = 16_384


class Timeline(Protocol):
    """Charges the time between two marks to a name."""

    def mark(self, name: str) -> None:
        """Charge the time since the last mark to `name`."""
        ...

    def take(self) -> dict[str, float]:
        """Seconds charged to every name since the last call."""
        ...


class HostTimeline:
    """Time as the host sees it, which is the truth on a CPU. `now` gives seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._last = now()
        self._seconds: dict[str, float] = {}

    def mark(self, name: str) -> None:
        moment = self._now()
        self._seconds[name] = self._seconds.get(name, 0.0) + moment - self._last
        self._last = moment

    def take(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds


class StreamTimeline:
    """Time as the current CUDA stream sees it. Marks cost no synchronisation; `take` waits for the last one."""

    def __init__(self) -> None:
        self._last = self._event()
        self._pending: list[tuple[str, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    def mark(self, name: str) -> None:
        self._pending.append((name, self._event()))
        if len(self._pending) >= _MAX_PENDING_EVENTS:
            self._settle()

    def take(self) -> dict[str, float]:
        self._settle()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _settle(self) -> None:
        if not self._pending:
            return
        self._pending[-1][1].synchronize()
        for name, event in self._pending:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._last.elapsed_time(event) / 1000.0
            self._last = event
        self._pending = []

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class StepClock:
    """Charges every moment since its making to one of `PARTS`, and records the spans of kernels/ and model/.

    Args:
        device: where the model computes; decides which clock is read.
        timeline: another source of time, for tests.
    """

    def __init__(self, device: torch.device, timeline: Timeline | None = None) -> None:
        self._timeline = timeline or (StreamTimeline() if device.type == "cuda" else HostTimeline())
        self._open: list[str] = []
        self._charged: list[str] = ["other"]
        spans.install(self)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`, one of `PARTS`."""
        if name not in PARTS:
            raise ValueError(f"'{name}' is not a part of a step; parts: {', '.join(PARTS)}")
        self.enter(name)
        try:
            yield
        finally:
            self.leave(name)

    def enter(self, name: str) -> None:
        """Open a span (kernels.spans calls this). Names that are no part stay with the part around them."""
        around = self._charged[-1]
        splits = name in PARTS and (not self._open or self._open[0] in _SPLIT)
        self._timeline.mark(around)
        self._open.append(name)
        self._charged.append(name if splits else around)

    def leave(self, name: str) -> None:
        """Close the innermost span, which must be `name`."""
        if not self._open or self._open[-1] != name:
            raise RuntimeError(f"span '{name}' closed while the open spans are {self._open}")
        self._timeline.mark(self._charged.pop())
        self._open.pop()

    @property
    def part_now(self) -> str:
        """The part that time is charged to now."""
        return self._charged[-1]

    def read(self) -> dict[str, float]:
        """Seconds a part since the last read (or the start). All of `PARTS` are there; they add up to the time between.

        May be called inside a part: what ran so far is charged, the rest goes to the next read.
        """
        self._timeline.mark(self._charged[-1])
        seconds = self._timeline.take()
        return {name: seconds.get(name, 0.0) for name in PARTS}

    def close(self) -> None:
        """Stop recording spans."""
        spans.uninstall()
