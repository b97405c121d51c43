"""Loader workers without imports: their fork server as a fork of this process instead of a fresh interpreter.

A trainer must not fork its loader workers itself, for its communication threads hold locks (data_pipeline/loader.py). So they come from
a server, and the standard library starts that by executing Python anew, which then imports torch: seconds, at every restart.
"""

from __future__ import annotations

import os
import traceback
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
    code = 0
    try:
        util.close_all_fds_except([0, 1, 2, *kept])
        exec(words[-1], {})
    except SystemExit:  # its end when nobody needs it any more
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)
