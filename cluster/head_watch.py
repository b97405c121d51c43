"""Whether Ray's head still answers. Without it this process cannot place, find or end anything: it leaves, and a new one may go on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from cluster.exit_codes import DRIVER_LOST

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 2.0
LOOKS = 5


class HeadLost(RuntimeError):
    """Nothing answers at the address of Ray's head."""


def head_address() -> str:
    """host:port of the head of the Ray that this process is connected to."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def head_answers(address: str | None = None) -> bool:
    """Whether something listens there."""
    host, _, port = (address or head_address()).rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False


def watch_head() -> None:
    """Leave this process once the head has not answered LOOKS times in a row. Ray's own calls would block for a minute, then abort."""
    threading.Thread(target=_watch, args=(head_address(),), daemon=True, name="head-watch").start()


def leave(reason: str) -> NoReturn:
    """End every child and this process at once; the launcher starts another driver."""
    print(reason, file=sys.stderr, flush=True)
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.send_signal(signal.SIGKILL)
    os._exit(DRIVER_LOST)


def _watch(address: str) -> None:
    missed = 0
    while missed < LOOKS:
        time.sleep(LOOK_SECONDS)
        missed = 0 if head_answers(address) else missed + 1
    leave(f"Ray's head at {address} has not answered {LOOKS} times in a row")
