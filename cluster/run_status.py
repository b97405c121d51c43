"""How a run stands, as its folder tells it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from cluster.events import read_events, restarts, words
from cluster.progress import duration, follow
from cluster.run_lock import holder_elsewhere, is_held
from distributed.run_folder import RunFolder

AT_WORK = ("starting", "running", "stopping")


@dataclass(frozen=True)
class RunStatus:
    """One line of `status`. `state` is that of state.json, or `lost`: it says at work and no process is. `held_by`: the host, and since
    when, of a run at work whose processes cannot be looked for from here.
    """

    name: str
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    tokens_per_second: float | None
    age_seconds: float | None
    reason: str | None
    goodput: float | None = None
    restarts: int = 0
    last_event: str | None = None
    held_by: str | None = None


def status_of(run: RunFolder) -> RunStatus:
    """Read a run's state and look for its processes."""
    found = run.read_state()
    state = found["state"]
    events = read_events(run)
    news = [event for event in events if event.kind not in ("launched", "started")]
    folders = [run] if run.comparison is None else [run, run.comparison]
    held = is_held(run)
    if state == "failed" and not found.get("reason") and held:
        state = "starting"  # a rank left its error; the supervisor, which ends a run with a reason, is still there
    if state in AT_WORK and not any(map(is_held, folders)):
        state = "lost"
    elif state in AT_WORK and run.stop_path.exists():
        state = "stopping"
    return RunStatus(
        name=run.full_name,
        state=state,
        step=found.get("step"),
        steps=found.get("steps"),
        loss=found.get("loss"),
        tokens_per_second=found.get("tokens_per_second"),
        age_seconds=time.time() - found["time"] if "time" in found else None,
        reason=found.get("reason"),
        goodput=found.get("goodput"),
        restarts=restarts(events),
        last_event=words(news[-1]) if news else None,
        held_by=next(filter(None, map(holder_elsewhere, folders)), None) if state in AT_WORK else None,
    )


def status_table(rows: list[RunStatus]) -> Table:
    """The runs as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "tokens/s", "goodput", "restarts", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        step = "-" if row.step is None else f"{row.step}/{row.steps or '?'}"
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        speed = "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
        goodput = "-" if row.goodput is None else f"{row.goodput:.0%}"
        age = "-" if row.age_seconds is None else duration(row.age_seconds)
        table.add_row(row.name, row.state, step, loss, speed, goodput, str(row.restarts), age)
    return table


def watch(run: RunFolder, console: Console) -> None:
    """The progress line of a run that another process started, from its last figures on until it ends."""
    state = run.read_state()
    begun = "loss" in state and state["state"] != "starting"
    known = {name: value for name, value in state.items() if name != "held_out"} if begun else None
    follow(run, run.recipe().train.steps, lambda: status_of(run).state in AT_WORK, console, known)
    found = status_of(run)
    console.print(f"run {found.name}: {found.state} at step {found.step or 0}", highlight=False)
