"""A sign of life: a thread that writes where this process stands to a small local file, for the hang watch.

The thread needs the interpreter, not the training thread: a rank that waits in a collective still beats, a stopped or dead-locked
one does not. The watcher (cluster/hang_watch.py) tells the two apart by the age of the file.

    MOOTRON_HEARTBEAT=/tmp/beat python ...        # start() in that process writes there
    read_pulse(Path("/tmp/beat"))
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "MOOTRON_HEARTBEAT"
INTERVAL_SECONDS = 0.25


@dataclass(frozen=True)
class Pulse:
    """Where a rank stood at `time` (its host's clock).

    `first`: steps done when this process began to train, None before; `step`: steps done now; `number` and `name`: of the last
    collective entered; `part`: of the step, as distributed/clock.py names them.
    """

    time: float
    step: int = 0
    first: int | None = None
    number: int = 0
    name: str = ""
    part: str = ""

    @property
    def in_training(self) -> bool:
        """Whether this process has finished a step of its own."""
        return self.first is not None and self.step > self.first


class Position:
    """What the trainer says of itself; read by the beating thread."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.part: Callable[[], str] = lambda: ""
        self._step = 0
        self._path: Path | None = None
        self._writing = threading.Lock()

    def begin(self, step: int, part: Callable[[], str]) -> None:
        """Training goes on after `step` steps; `part` names the part of the step that runs when it is called."""
        self.first, self.part = step, part
        self.step = step

    @property
    def step(self) -> int:
        """Steps done. Setting it beats at once, so that the last step finished is known however the process ends."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        self.beat()

    def beat(self) -> None:
        """Write where this process stands, if anyone wants to know."""
        if self._path is not None:
            with self._writing, contextlib.suppress(OSError):  # a full or removed folder must not end training; the file's age tells
                write_pulse(self._path, self.pulse())

    def beat_into(self, path: Path) -> None:
        """From now on write to `path`, at every step and from a thread."""
        self._path = path
        threading.Thread(target=self._keep_beating, daemon=True, name="heartbeat").start()

    def pulse(self) -> Pulse:
        """The position now."""
        collectives = sys.modules.get("distributed.collectives")  # not loaded before torch is
        progress = getattr(collectives, "progress", None)
        number, name = (progress.number, progress.name) if progress else (0, "")
        return Pulse(time.time(), self._step, self.first, number, name, self.part())

    def _keep_beating(self) -> None:
        while True:
            self.beat()
            time.sleep(INTERVAL_SECONDS)


position = Position()


def start() -> None:
    """Beat into the file that MOOTRON_HEARTBEAT names until the process ends; without the variable do nothing."""
    if VARIABLE in os.environ:
        position.beat_into(Path(os.environ[VARIABLE]))


def write_pulse(path: Path, pulse: Pulse) -> None:
    """Replace the file; a reader sees a whole pulse. Not flushed to disk: it is of no use after a crash of the host."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(asdict(pulse)))
    os.replace(beside, path)


def read_pulse(path: Path) -> Pulse | None:
    """The last pulse in the file; None when there is none."""
    try:
        return Pulse(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
