"""How long it took from a failure to the first step beyond the last one finished before it, and where that time went."""

from __future__ import annotations

from cluster.events import RunEvent
from cluster.layouts import Layout
from distributed.heartbeat import Pulse


class Recovery:
    """Starts at a failure; `mark` ends a part of the way. Several failures before a success are one recovery.

    Args:
        failed: when, seconds of the wall clock.
        step: the last step finished before.
    """

    def __init__(self, failed: float, step: int) -> None:
        self.failed, self.step = failed, step
        self.last = failed
        self.parts: dict[str, float] = {}
        self.done = False

    def mark(self, part: str, now: float) -> None:
        """The time since the last mark went into `part`."""
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    def failed_again(self, step: int | None) -> None:
        """Another failure came before the end."""
        self.step = max(self.step, step or 0)

    def look(self, pulses: list[Pulse], now: float) -> None:
        """Note when the first rank began to train and when training passed the step of the failure.

        Args:
            pulses: of ranks that have begun.
        """
        if "start ranks" not in self.parts:
            self.mark("start ranks", now)
        beyond = [pulse.time for pulse in pulses if pulse.in_training and pulse.step > self.step]
        if beyond and not self.done:
            self.mark("steps", now)
            self.done = True

    def event(self, layout: Layout, step: int | None) -> RunEvent:
        """The line that tells of it."""
        return RunEvent(
            "recovered",
            step=step,
            world=layout.world,
            expert_parallel=layout.expert_parallel,
            seconds=round(self.last - self.failed, 2),
            parts={name: round(seconds, 2) for name, seconds in self.parts.items()},
        )
