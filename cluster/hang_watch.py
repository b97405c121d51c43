"""Whether a group stands still, and who keeps it. Pure: the caller gives the time.

All ranks stall together, because all wait for the one that does not come. The culprit is the rank that gives no sign of life
(stopped, dead-locked, cut off), else the one that has entered the fewest collectives.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.rank_process import RankReport
from distributed.heartbeat import Pulse

SILENT_SECONDS = 2.0  # a rank beats every quarter of a second


@dataclass(frozen=True)
class Hang:
    """A group that stands still. `rank` is the culprit; None when all stand at the same place."""

    kind: str
    rank: int | None
    step: int | None
    reason: str


class HangWatch:
    """Looks at every poll; made anew for every start of a group.

    Args:
        hang_seconds: how long no rank may move once one has finished a step.
        start_seconds: how long that first step may take to come.
        now: seconds, any monotonic clock.
    """

    def __init__(self, hang_seconds: float, start_seconds: float, now: float) -> None:
        self.hang_seconds, self.start_seconds = hang_seconds, start_seconds
        self.started = self.moved = now
        self.in_training = False
        self.places: dict[int, tuple[int, int]] = {}

    def look(self, reports: list[RankReport], now: float) -> Hang | None:
        """What is wrong now, if anything."""
        places = {report.rank: (report.pulse.step, report.pulse.number) for report in reports if report.pulse}
        if any(self.places.get(rank) != place for rank, place in places.items()):
            self.moved = now
        self.places |= places
        self.in_training = self.in_training or any(report.pulse.in_training for report in reports if report.pulse)
        if not self.in_training:
            late = now - self.started > self.start_seconds
            return find_culprit("slow start", reports, f"no step within cluster.start_seconds={self.start_seconds:g}") if late else None
        if now - self.moved <= self.hang_seconds:
            return None
        return find_culprit("hung", reports, f"no rank moved for cluster.hang_seconds={self.hang_seconds:g}")


def find_culprit(kind: str, reports: list[RankReport], why: str) -> Hang:
    """The silent rank, else the one furthest behind."""
    running = [report for report in reports if report.outcome is None]
    for report in running:
        sign = _sign_of_silence(report)
        if sign:
            return Hang(kind, report.rank, _step(report.pulse), f"{why}; {sign}, {_where(report.pulse)}")
    beating = [report for report in running if report.pulse]
    mute = [report for report in running if not report.pulse]
    if beating and mute:
        return Hang(kind, mute[0].rank, None, f"{why}; it has not begun, others have")
    if not beating:
        return Hang(kind, None, None, f"{why}; no rank has given a sign of life")
    behind = min(beating, key=lambda report: report.pulse.number if report.pulse else 0)
    first = min(report.pulse.number for report in beating if report.pulse)
    if len(beating) > 1 and all(report.pulse and report.pulse.number == first for report in beating):
        return Hang(kind, None, _step(behind.pulse), f"{why}; all ranks stand at the same place, {_where(behind.pulse)}")
    return Hang(kind, behind.rank, _step(behind.pulse), f"{why}; it is furthest behind, {_where(behind.pulse)}")


def _sign_of_silence(report: RankReport) -> str:
    if report.stopped:
        return "its process is stopped (SIGSTOP)"
    if not report.heard:
        return "its host does not answer"
    if report.pulse and report.pulse_age > SILENT_SECONDS:
        return f"it gave no sign of life for {report.pulse_age:.0f} s"
    return ""


def _step(pulse: Pulse | None) -> int | None:
    return pulse.step if pulse else None


def _where(pulse: Pulse | None) -> str:
    if pulse is None:
        return "before it began to train"
    collective = f"collective {pulse.number} '{pulse.name}'" if pulse.number else "no collective yet"
    return f"after step {pulse.step}, {f'in part {pulse.part!r}, ' if pulse.part else ''}last entered {collective}"
