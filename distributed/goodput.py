"""How much of the time since a run was submitted went into steps that count, and where the rest went.

A ledger (`goodput.jsonl` in the run folder) gets one line when the trainer starts, one an interval and one when it
leaves. It outlives crashes, so time lost to them is seen: steps done after the last checkpoint are done again and the
first time counts as lost; the time from the last line to the next start counts as restart. Time between a stop that was
asked for and the resume is nobody's loss and is left out.

The productive time and all kinds of lost time add up to the wall time; `goodput` is productive over wall.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from distributed.json_lines import append_line, read_lines

PRODUCTIVE = ("forward", "attention", "dispatch", "experts", "backward", "optimizer")
LOST = ("set_up", "restart", "lost_steps", "skipped_steps", "data", "validation", "checkpoint", "logging", "other")


@dataclass(frozen=True)
class Event:
    """A line of the ledger.

    `started`: the trainer begins at `step`; `begin` is when its wait began (submission or the wish to resume).
    `interval`: `steps` steps up to `step` took `seconds` (by part, rank mean), `skipped` of them without an update.
    `ended`: the trainer left as it should; `failed`: because another rank was gone. Both hold the time since the last interval.
    """

    kind: Literal["started", "interval", "ended", "failed"]
    time: float
    step: int
    begin: float = 0.0
    world: int = 0
    steps: int = 0
    skipped: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Ledger:
    """Appends events to a file and reads them back; a half-written last line (a crash) is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Add a line."""
        append_line(self.path, asdict(event))

    def events(self) -> Iterator[Event]:
        """All whole lines, oldest first."""
        for values in read_lines(self.path):
            with suppress(TypeError):
                yield Event(**values)


def account(events: Iterable[Event]) -> dict[str, Any]:
    """Sum a ledger up.

    Returns:
        {"wall": seconds, "productive": seconds, "goodput": productive / wall, "lost": {kind: seconds}}; the parts add
        up to the wall time up to the last event.
    """
    productive = 0.0
    lost = dict.fromkeys(LOST, 0.0)
    wall = 0.0
    done: list[tuple[Event, float]] = []  # intervals that count so far, with their productive seconds
    last: Event | None = None
    for event in events:
        if event.kind == "started":
            begin, kind = _wait(event, last)
            lost[kind] += event.time - begin
            wall += event.time - begin
            repeated = _take_back(done, event.step)
            productive -= repeated
            lost["lost_steps"] += repeated
        elif last is not None:
            elapsed = event.time - last.time
            wall += elapsed
            useful, rest = _split(event, elapsed)
            if event.kind == "failed":  # steps that nobody logged: they will be done again
                lost["lost_steps"] += useful
            else:
                productive += useful
                done.append((event, useful))
            for name, seconds in rest.items():
                lost[name] += seconds
        last = event
    return {"wall": wall, "productive": productive, "goodput": productive / wall if wall > 0 else 0.0, "lost": lost}


def _wait(event: Event, last: Event | None) -> tuple[float, str]:
    """When the wait for this start began, and what kind of loss it is."""
    if last is None or last.kind == "ended":
        earliest = last.time if last is not None else 0.0
        return min(max(event.begin, earliest), event.time), "set_up"
    return min(last.time, event.time), "restart"


def _take_back(done: list[tuple[Event, float]], step: int) -> float:
    """Productive seconds of steps past `step`, which will be done again; an interval that straddles it is shared."""
    repeated = 0.0
    while done and done[-1][0].step > step:
        event, useful = done.pop()
        share = min(1.0, (event.step - step) / max(event.steps, 1))
        repeated += useful * share
        if share < 1.0:
            kept = Event("interval", event.time, step, steps=event.steps - (event.step - step))
            done.append((kept, useful * (1.0 - share)))
    return repeated


def _split(event: Event, elapsed: float) -> tuple[float, dict[str, float]]:
    """Productive seconds of an interval and its losses; what the parts do not explain of `elapsed` is `other`."""
    useful = sum(event.seconds.get(name, 0.0) for name in PRODUCTIVE)
    rest = {name: seconds for name, seconds in event.seconds.items() if name not in PRODUCTIVE}
    rest["other"] = elapsed - useful - sum(seconds for name, seconds in rest.items() if name != "other")
    skipped = useful * event.skipped / event.steps if event.steps else 0.0
    rest["skipped_steps"] = skipped
    return useful - skipped, rest
