"""What a person sees while a run goes on: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from cluster.events import RunEvent, events_path
from cluster.events import words as event_words
from cluster.metrics_tail import MetricsTail
from distributed.depth_figures import depth_words
from distributed.run_folder import RunFolder

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0


def follow(run: RunFolder, steps: int, alive: Callable[[], bool], console: Console, known: dict[str, Any] | None = None) -> None:
    """Show the run's figures until `alive` says no. `steps`: how many the run will have; `known`: figures to begin with."""
    tail, news = MetricsTail(run.metrics_path), MetricsTail(events_path(run))
    show = LiveLine(steps, console) if console.is_terminal else PlainLines(steps, console)
    with show:
        show.figures(known or {})
        while True:
            last = not alive()
            for line in news.read():
                show.event(event_words(RunEvent(**line)))
            for figures in tail.read():
                show.figures(figures)
            if last:
                return
            time.sleep(REFRESH_SECONDS)


class PlainLines:
    """For pipes, logs and CI: the first figures, then a line every PLAIN_SECONDS at most, and the last."""

    def __init__(self, steps: int, console: Console) -> None:
        self.steps, self.console = steps, console
        self.shown_at = float("-inf")
        self.waiting: dict[str, Any] | None = None

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *fault: object) -> None:
        if self.waiting is not None:
            self._print(self.waiting)

    def figures(self, figures: dict[str, Any]) -> None:
        """Take one line of metrics.jsonl."""
        if "held_out" in figures:
            self.console.print(held_out_words(figures), highlight=False)
        elif "loss" in figures:
            self.waiting = figures
            if time.monotonic() - self.shown_at >= PLAIN_SECONDS:
                self._print(figures)

    def event(self, words: str) -> None:
        """Something happened to the group."""
        self.console.print(words, highlight=False, markup=False, soft_wrap=True)

    def _print(self, figures: dict[str, Any]) -> None:
        self.console.print(f"step {figures['step']}/{self.steps}  {words(figures, self.steps)}", highlight=False)
        self.shown_at, self.waiting = time.monotonic(), None


class LiveLine:
    """For a terminal: one line that is redrawn."""

    def __init__(self, steps: int, console: Console) -> None:
        self.steps = steps
        columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=console, transient=True)
        self.task = self.bar.add_task("starting the workers", total=steps)

    def __enter__(self) -> LiveLine:
        self.bar.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self.bar.stop()

    def event(self, words: str) -> None:
        """Something happened to the group."""
        self.bar.console.print(words, highlight=False, markup=False, soft_wrap=True)

    def figures(self, figures: dict[str, Any]) -> None:
        """Take one line of metrics.jsonl."""
        if "held_out" in figures:
            self.bar.console.print(held_out_words(figures), highlight=False)
        elif "loss" in figures:
            self.bar.update(self.task, completed=figures["step"], description=words(figures, self.steps))


def words(figures: dict[str, Any], steps: int) -> str:
    """Loss, depth where it is not fixed, speed and time left of one interval."""
    loss = figures["loss"]
    shown = "not finite" if loss is None else f"{loss:.4f}"
    left = duration((steps - figures["step"]) * figures["step_seconds"])
    speed = f"{figures['tokens_per_second']:,.0f} tokens/s  {figures['step_seconds']:.2f} s/step"
    return f"loss {shown}{depth_words(figures)}  {speed}  {left} left"


def held_out_words(figures: dict[str, Any]) -> str:
    """Held-out loss by source, one line."""
    losses = "  ".join(f"{source} {'not finite' if nats is None else f'{nats:.4f}'}" for source, nats in figures["held_out"].items())
    return f"step {figures['step']}  held-out loss: {losses}"


def duration(seconds: float) -> str:
    """`1:05:09` or `5:09`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
