"""What a person sees while a comparison goes on: one line for all runs, redrawn on a terminal, now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cluster.comparison.entries import Entry
from cluster.comparison.schedule import is_finished
from cluster.progress import duration

PLAIN_SECONDS = 20.0


class ProgressLine:
    """Call it with the runs at work; a context manager."""

    def __init__(self, entries: list[Entry], console: Console) -> None:
        self.entries, self.console = entries, console
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.began = time.monotonic()
        self.steps_before = sum(steps_done(entry) for entry in entries)
        self.shown_at = float("-inf")

    def __enter__(self) -> ProgressLine:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *fault: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, at_work: list[Entry]) -> None:
        if self.live is not None:
            self.live.update(Text(self.words(at_work)), refresh=True)
        elif time.monotonic() - self.shown_at >= PLAIN_SECONDS:
            self.shown_at = time.monotonic()
            self.console.print(self.words(at_work), highlight=False, markup=False, soft_wrap=True)

    def words(self, at_work: list[Entry]) -> str:
        """`5 of 24 finished, 23% of steps, about 12:10 left | moeut-s1 40/240 loss 5.1234`."""
        finished = sum(is_finished(entry) for entry in self.entries)
        done, total = sum(steps_done(entry) for entry in self.entries), sum(entry.recipe.train.steps for entry in self.entries)
        parts = [f"{finished} of {len(self.entries)} finished, {done / total:.0%} of steps"]
        if done > self.steps_before:
            left = (time.monotonic() - self.began) / (done - self.steps_before) * (total - done)
            parts.append(f"about {duration(left)} left")
        return " | ".join([", ".join(parts), *(run_words(entry, entry.run.read_state()) for entry in at_work)])


def steps_done(entry: Entry) -> int:
    """Steps of a run so far, as far as it has said."""
    return int(entry.run.read_state().get("step") or 0)


def run_words(entry: Entry, state: dict[str, Any]) -> str:
    """One run at work."""
    loss = state.get("loss")
    shown = "" if loss is None else f" loss {loss:.4f}"
    return f"{entry.run.name} {state.get('step') or 0}/{entry.recipe.train.steps}{shown}"
