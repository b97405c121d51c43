"""What happened to a run's group: one line of events.jsonl for every launch, failure, restart and growth.

The supervisor counts failures from this file, so its bounds hold over a driver that was killed as well; `status`, the live
line and the summary read it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path

from distributed.json_lines import append_line, read_lines
from distributed.run_folder import RunFolder

FAILURES = ("killed", "crashed", "hung", "slow start", "node lost", "driver lost", "not placed")
"""Kinds that count as failures. The others: `launched` by a person, `started` a group, `recovered` (the first step beyond
the last one finished before a failure), `grows`, `left out` (a host), `straggler`."""


@dataclass(frozen=True)
class RunEvent:
    """A line. `rank` and `host` (with its `address`) are those at fault, `step` the last one finished, `world` and
    `expert_parallel` the group's; `seconds`: of a failure how long the group had run, of a recovery how long it took."""

    kind: str
    time: float = field(default_factory=time.time)
    rank: int | None = None
    host: str | None = None
    address: str | None = None
    step: int | None = None
    reason: str | None = None
    signature: str | None = None
    world: int | None = None
    expert_parallel: int | None = None
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


_FIELDS = {field.name for field in fields(RunEvent)}


def events_path(run: RunFolder) -> Path:
    """Where a run's events are."""
    return run.path / "events.jsonl"


def append_event(run: RunFolder, event: RunEvent) -> None:
    """Add a line, whole even after one that a crash cut, and on the disk when this returns."""
    shown = {name: value for name, value in asdict(event).items() if value not in (None, {})}
    append_line(events_path(run), shown, on_disk=True)


def read_events(run: RunFolder) -> list[RunEvent]:
    """All whole lines, oldest first."""
    return [RunEvent(**values) for values in read_lines(events_path(run)) if set(values) <= _FIELDS and "kind" in values]


def since_launch(events: list[RunEvent]) -> list[RunEvent]:
    """The events after the last launch by a person."""
    launches = [position for position, event in enumerate(events) if event.kind == "launched"]
    return events[launches[-1] + 1 :] if launches else events


def restarts(events: Sequence[RunEvent]) -> int:
    """How often a group was started again without anyone asking."""
    kinds = [event.kind for event in events if event.kind in ("launched", "started")]
    return sum(pair == ("started", "started") for pair in pairwise(kinds))


def words(event: RunEvent) -> str:
    """One line for a person."""
    who = "" if event.rank is None else f" rank {event.rank} on {event.host}"
    at = "" if event.step is None else f" at step {event.step}"
    layout = "" if event.world is None else f"{event.world} workers, expert parallelism {event.expert_parallel}"
    first = (event.reason or "").partition("\n")[0]
    if event.kind == "started":
        return f"group of {layout} starts"
    if event.kind == "grows":
        return f"room for more: {first}"
    if event.kind == "recovered":
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in event.parts.items())
        return f"goes on{at} with {layout}, {event.seconds:.1f} s after the failure ({parts})"
    return f"{event.kind}:{who}{at}: {first}"
