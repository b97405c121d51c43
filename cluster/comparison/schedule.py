"""Train what is not finished yet: as many runs at once as there is room for, until all are done or the time is up.

A run keeps its own record (state, checkpoints), so the same call later goes on where this one stopped: finished runs are kept,
others resume from their newest checkpoint, and one that failed is tried again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.comparison.entries import Entry
from cluster.comparison.runners import Runner
from cluster.failures import last_lines
from cluster.launcher import STOP_SIGNALS
from cluster.rank_process import rank_log

LOOK_SECONDS = 0.3


class StopRequest:
    """Asked by the clock or by a signal; a second signal is a KeyboardInterrupt, which ends the runs at once.

    Args:
        seconds: after how long to stop; None: never by itself.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._heard = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background shells ignore on purpose
                self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *fault: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to begin nothing more and to save what is at work."""
        return self._heard or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard:
            raise KeyboardInterrupt
        self._heard = True


def train_all(entries: list[Entry], runner: Runner, stop: StopRequest, show: Callable[[list[Entry]], None]) -> None:
    """Train every entry that has not finished. `show` is called now and then with what is at work."""
    waiting = [entry for entry in entries if not is_finished(entry)]
    at_work: dict[Path, Entry] = {}
    while at_work or (waiting and not stop.asked):
        while waiting and len(at_work) < runner.at_once and not stop.asked:
            entry = waiting.pop(0)
            prepare_run(entry)
            runner.start(entry.run)
            at_work[entry.run.path] = entry
        if stop.asked:
            for entry in at_work.values():
                entry.run.stop_path.touch()
        show(list(at_work.values()))
        time.sleep(LOOK_SECONDS)
        for path, code in runner.ended().items():
            note_failure(at_work.pop(path), code)


def prepare_run(entry: Entry) -> None:
    """Its folder with its recipe, and no request of an earlier start."""
    entry.run.create(entry.recipe)
    entry.run.stop_path.unlink(missing_ok=True)
    entry.run.change_state("starting")


def note_failure(entry: Entry, code: int) -> None:
    """A process that ended without a word (killed, or out of memory) failed too."""
    entry.run.stop_path.unlink(missing_ok=True)
    if code != 0 and not entry.run.read_state().get("reason"):
        words = last_lines(rank_log(entry.run, 0), 1)
        entry.run.change_state("failed", reason=f"its process ended with code {code}{': ' + words[0] if words else ''}")


def is_finished(entry: Entry) -> bool:
    """Whether the run has done its last step and said so."""
    return bool(entry.run.read_state()["state"] == "finished")
