"""A spare rank process: everything imported, waiting for its task.

Imports cost some ten CPU seconds a rank, most of a restart. A rank that has made its first step leaves the list of the modules it
has loaded; the spare loads the same while training goes on, in a thread of lowered priority (a whole process that lowered its own
could not raise it again), and takes the place of the rank when that dies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import threading
import time
from pathlib import Path

from distributed import heartbeat
from distributed.run_folder import write_atomically

NICENESS = 5  # on two busy cores: warm within a minute, in which training is a quarter slower
LOOK_SECONDS = 0.5


def modules_path(beat: Path) -> Path:
    """Where a rank that beats into `beat` leaves its list of modules."""
    return beat.with_name("modules.json")


def leave_modules(path: Path) -> None:
    """Write the names of all loaded modules to `path` after this rank's first step; from a thread, returns at once."""

    def wait_and_write() -> None:
        while not heartbeat.position.pulse().in_training:
            time.sleep(LOOK_SECONDS)
        with contextlib.suppress(OSError):  # the spare is a help, never a reason to fail
            write_atomically(path, json.dumps(list(sys.modules)))

    threading.Thread(target=wait_and_write, daemon=True, name="leave-modules").start()


def warm_up(modules: Path, loader_workers: int) -> None:
    """Load the modules listed in `modules`, and start the server that data loader workers come from if the run has any."""
    began = time.monotonic()
    thread = threading.Thread(target=_import_all, args=(json.loads(modules.read_text()),), name="warm-up")
    thread.start()
    thread.join()
    if loader_workers:  # not in the thread: loader workers would inherit its priority
        multiprocessing.set_forkserver_preload(["data_pipeline.loader"])
        multiprocessing.forkserver.ensure_running()
    print(f"process {os.getpid()} is warm after {time.monotonic() - began:.1f} s", flush=True)


def receive_task() -> tuple[str, ...] | None:
    """Wait for a task: sets the environment, sends the output to its log, returns the arguments. None: no task will come."""
    line = sys.stdin.readline()
    if not line:
        return None
    task = json.loads(line)
    os.environ.update(task["environment"])
    log = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    return tuple(task["arguments"])


def _import_all(names: list[str]) -> None:
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    for name in names:
        with contextlib.suppress(Exception):  # some names are no files; what is truly missing is the task's to complain of
            importlib.import_module(name)
