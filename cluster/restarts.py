"""Whether a run goes on after a failure, and after how long a wait. Pure functions of the run's events; no Ray."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cluster.events import FAILURES, RunEvent

HOUR = 3600.0
LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Decision:
    """`go_on` after `wait_seconds`, or end the run and tell `reason`."""

    go_on: bool
    wait_seconds: float = 0.0
    reason: str = ""


def decide(events: list[RunEvent], max_failures_an_hour: int, now: float) -> Decision:
    """What to do after the failure that is the last of `events` (all since the launch).

    The same error at the same step twice, with no step gained between, would come a third time. What comes from outside
    (a signal, a lost node, a hang) has no signature and is bounded by the count alone.
    """
    failures = [event for event in events if event.kind in FAILURES]
    if not failures:
        return Decision(True)
    last = failures[-1]
    if len(failures) > 1 and last.signature and (last.signature, last.step) == (failures[-2].signature, failures[-2].step):
        return Decision(False, reason=f"the same failure came twice at step {last.step or 0}, so a third start would not help")
    recent = sum(failure.time > now - HOUR for failure in failures)
    if recent > max_failures_an_hour:
        return Decision(False, reason=f"{recent} failures within an hour, and cluster.max_failures_an_hour is {max_failures_an_hour}")
    return Decision(True, wait_seconds=back_off(failures))


def back_off(failures: list[RunEvent]) -> float:
    """Seconds to wait: none after a failure that came beyond the furthest step before, else 1, 2, 4, ... up to a minute."""
    fruitless, furthest = 0, -1
    for failure in failures:
        step = failure.step or 0
        fruitless = 0 if step > furthest else fruitless + 1
        furthest = max(furthest, step)
    return 0.0 if fruitless == 0 else min(LONGEST_WAIT_SECONDS, 2.0 ** (fruitless - 1))


def hosts_to_leave_out(events: list[RunEvent], max_failures_a_host: int, now: float) -> set[str]:
    """Addresses of hosts with more failures within an hour than a host may have."""
    failures = Counter(event.address for event in events if event.kind in FAILURES and event.address and event.time > now - HOUR)
    return {address for address, count in failures.items() if count > max_failures_a_host}
