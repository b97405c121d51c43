"""One process group a run: a file lock that the kernel releases when its last holder is gone, however it died."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from data_pipeline.files import read_object
from distributed.errors import RunError
from distributed.run_folder import RunFolder, writing

REFUSAL = "run '{name}' is already at work ({who}); follow it with ./launch.sh logs -f {name}, or choose another name with --name"


class RunLock:
    """Held by whoever trains in a run folder; `with RunLock(run): ...`.

    The descriptor may be handed to a child, which then shares the lock: it is free once all of them are gone.

    Args:
        refusal: what is told where another holds it, with places for `name` and `who`.
    """

    def __init__(self, run: RunFolder, refusal: str = REFUSAL) -> None:
        self.run, self.refusal = run, refusal
        self.descriptor = -1

    def __enter__(self) -> RunLock:
        path = lock_path(self.run)
        with writing(self.run.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock_soon(self.descriptor):
            os.close(self.descriptor)
            raise RunError(self.refusal.format(name=self.run.name, who=_holder(self.run)))
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(owner).encode(), 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        os.close(self.descriptor)


def _lock_soon(descriptor: int) -> bool:
    """Take the lock; a few tries, because `is_held` of another process holds it for an instant."""
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def lock_path(run: RunFolder) -> Path:
    """The file that is locked; it stays when the lock is released."""
    return run.path / "lock"


def owner_of(run: RunFolder) -> dict[str, Any]:
    """The last holder: pid, host, time; empty when the run was never started, or the file is damaged."""
    found = read_object(lock_path(run))
    return found if {"pid", "host", "time"} <= set(found) else {}


def holder_elsewhere(run: RunFolder) -> str | None:
    """Under which other host's name the lock was last taken, and when; None where it was this one's.

    A machine that got another name, and a folder that was copied, look like this too.
    """
    owner = owner_of(run)
    if owner.get("host", socket.gethostname()) == socket.gethostname():
        return None
    return f"{owner['host']} since {time.strftime('%Y-%m-%d %H:%M', time.localtime(owner['time']))}"


def is_held(run: RunFolder) -> bool:
    """Whether some process works on the run now.

    A lock of another host is visible only on file systems that share locks, so a run of another host counts as held.
    """
    if holder_elsewhere(run) is not None:
        return True
    try:
        descriptor = os.open(lock_path(run), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _holder(run: RunFolder) -> str:
    owner = owner_of(run)
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"
