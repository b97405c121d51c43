"""Loader workers without imports: their fork server as a fork of this process instead of a fresh interpreter.

A trainer must not fork its loader workers itself, for its communication threads hold locks (data_pipeline/loader.py). So they come from
a server, and the standard library starts that by executing Python anew, which then imports torch: seconds, at every restart.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver, resource_tracker, util
from typing import Any


def start_loader_server() -> None:
    """Start the standard library's fork server by forking. Call while this process has one thread, and what workers need loaded."""
    resource_tracker.ensure_running()  # executes Python too, but imports next to nothing
    execute = util.spawnv_passfds
    util.spawnv_passfds = _fork  # type: ignore[assignment]
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = execute


def _fork(path: Any, words: list[str], kept: list[int]) -> int:
    """In place of executing `python -c COMMAND`, with only the descriptors `kept` open: run COMMAND in a fork."""
    process = os.fork()
    if process:
        return process
    try:
        beyond = 2
        for number in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(beyond + 1, number)
            beyond = number
        exec(words[-1], {})
    finally:
        os._exit(0)
