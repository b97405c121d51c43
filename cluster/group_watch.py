"""One group from its start to its end: polls the ranks, notices failures and hangs, recovery, room to grow, and stragglers."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.child import Outcome
from cluster.events import RunEvent, append_event
from cluster.failures import Failure, failure_of_hang, failure_of_outcomes, is_cause
from cluster.hang_watch import Hang, HangWatch
from cluster.layouts import Layout
from cluster.rank_process import RankReport
from cluster.recovery import Recovery
from cluster.stragglers import StragglerWatch
from cluster.worker_group import POLL_SECONDS, WorkerGroup
from distributed.cluster_config import ClusterConfig
from distributed.run_folder import RunFolder

GROW_SECONDS = 3.0  # between looks at the cluster; room must be there at two looks in a row
SETTLE_SECONDS = 0.2
LONGEST_SETTLE_SECONDS = 3.0  # where all seem to have failed because another is gone
STACK_SECONDS = 0.5


class GroupWatch:
    """Follows a started group.

    Args:
        recovery: of the failure before, whose end this group may bring.
        larger: the layout that the cluster could hold now, if it is larger than this group's.
    """

    def __init__(
        self,
        run: RunFolder,
        config: ClusterConfig,
        group: WorkerGroup,
        layout: Layout,
        recovery: Recovery | None,
        larger: Callable[[], Layout | None],
    ) -> None:
        self.run, self.group, self.layout, self.recovery, self.larger = run, group, layout, recovery, larger
        self.step: int | None = None
        self.in_training = False
        self.hang_watch = HangWatch(config.hang_seconds, config.start_seconds, time.monotonic())
        self.stragglers = StragglerWatch(run)
        self.next_look = time.monotonic() + GROW_SECONDS
        self.room_seen = self.asked = False

    def follow(self) -> str | Failure:
        """The result that all ranks gave, or the failure that ended one."""
        while True:
            reports = self.group.poll()
            self._note_steps(reports)
            if any(_has_failed(report) for report in reports):
                return failure_of_outcomes(self.run, self.group.places, self._settled())
            if all(report.outcome for report in reports):
                return str(reports[0].outcome.result) if reports[0].outcome else ""
            hang = self.hang_watch.look(reports, time.monotonic())
            if hang:
                return self._end_of(hang)
            self._now_and_then()
            time.sleep(POLL_SECONDS)

    def _settled(self) -> list[Outcome]:
        """Outcomes a moment later, for the rank that died first may be the last one to be seen dead."""
        deadline = time.monotonic() + LONGEST_SETTLE_SECONDS
        while True:
            time.sleep(SETTLE_SECONDS)
            outcomes = [report.outcome for report in self.group.poll() if report.outcome]
            if any(outcome.result is None and is_cause(outcome) for outcome in outcomes) or time.monotonic() > deadline:
                return outcomes

    def _note_steps(self, reports: list[RankReport]) -> None:
        pulses = [report.pulse for report in reports if report.pulse and report.pulse.first is not None]
        if pulses:
            self.step = max(pulse.step for pulse in pulses)
        self.in_training = self.in_training or any(pulse.in_training for pulse in pulses)
        if self.recovery and pulses:
            self.recovery.look(pulses, time.time())
            if self.recovery.done:
                append_event(self.run, self.recovery.event(self.layout, self.step))
                self.recovery = None

    def _end_of(self, hang: Hang) -> Failure:
        found = time.time()
        self.group.ask_for_stack(hang.rank or 0)
        time.sleep(STACK_SECONDS)
        return failure_of_hang(self.run, self.group.places, hang, found)

    def _now_and_then(self) -> None:
        """Look for stragglers and for room; ask the ranks to end at the next checkpoint when there is more."""
        if time.monotonic() < self.next_look or not self.in_training:
            return
        self.next_look = time.monotonic() + GROW_SECONDS
        for rank, words in self.stragglers.look():
            place = self.group.places[rank]
            append_event(self.run, RunEvent("straggler", rank=rank, host=place.host, address=place.address, step=self.step, reason=words))
        larger = None if self.asked else self.larger()
        if larger and self.room_seen:
            self.asked = True
            self.run.regroup_path.touch()
            append_event(self.run, RunEvent("grows", step=self.step, reason=f"{larger} from the next checkpoint on"))
        self.room_seen = larger is not None


def _has_failed(report: RankReport) -> bool:
    return report.outcome is not None and report.outcome.result is None
