"""The process that the ranks of a host are forked from: it has imported what training needs.

Imports cost some ten CPU seconds. Here they are paid once for all ranks of a host and all their restarts, and the memory of what
was imported is shared. It has one thread, because what a fork copies must not hold a lock of another; and it touches no device,
because a driver bears no fork: where something it imported did, ranks are fresh processes instead.

    actor                           fork server                     rank
    {"rank", "environment", ...} -> fork                         -> {"pid": 7}, trains, {"result": "finished"}
                                    {"code": 0} when it has ended

A rank is ended when its actor hangs up, and all are when the server or the actor that started it ends.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster import worker
from cluster.lifeline import die_with_parent
from cluster.loader_server import start_loader_server
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

_CUDA_NOT_INITIALIZED = 3  # cuda.h: CUDA_ERROR_NOT_INITIALIZED


def main(argv: list[str]) -> int:
    """Import, then fork; in a rank, run it and return its exit code."""
    parser = argparse.ArgumentParser(prog="cluster.fork_server")
    parser.add_argument("--run", required=True)
    parser.add_argument("--target", default=worker.TRAINER)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--listener", type=int, required=True)
    args, _ = parser.parse_known_args(argv)  # the others are the worker's
    die_with_parent(args.parent)
    recipe = RunFolder(Path(args.run)).recipe()
    import_all(args.target, recipe)
    server = os.getpid()
    connection, task = ForkServer(socket.socket(fileno=args.listener)).serve()
    enter_rank(task, server)
    if not may_fork():
        execute_rank(task, connection)
    if recipe.data.loader_workers:
        start_loader_server()
    return worker.main(task["arguments"], connection)


def import_all(target: str, recipe: Recipe) -> None:
    """Load what the target needs, at its start and later. What cannot be loaded is the rank's to complain of."""
    began = time.monotonic()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch then asks for devices without touching their driver
    with suppress(Exception):
        worker.load_function(target)
    for name in _loaded_later(recipe) if "distributed.trainer" in sys.modules else ():
        with suppress(Exception):
            importlib.import_module(name)
    gc.freeze()  # what lives now is never looked at again, so the ranks go on sharing its pages
    print(f"fork server {os.getpid()} is ready after {time.monotonic() - began:.1f} s", flush=True)


def _loaded_later(recipe: Recipe) -> tuple[str, ...]:
    """Modules that a trainer loads on its way: its engine, and what torch's optimizers and summaries load when made."""
    engine = (
        ("distributed.engine_plain",) if recipe.train.engine == "plain" else ("distributed.engine_deepspeed", "deepspeed.runtime.engine")
    )
    return (*engine, "torch._dynamo", "torch.utils.tensorboard", "distributed.checkpoint.local_storage")


def may_fork() -> bool:
    """Whether no accelerator's driver was started in this process. ROCm's cannot be asked: where torch is built for it, False."""
    if getattr(getattr(sys.modules.get("torch"), "version", None), "hip", None):
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == _CUDA_NOT_INITIALIZED)


class ForkServer:
    """Forks a rank for every task that arrives at the listening socket."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.PollSelector()  # with epoll, what a rank closes would be closed here as well
        self._actors: dict[Connection, int | None] = {}
        """The process id of each actor's rank; None before its task has come."""
        self._wake, self._woken = os.pipe()

    def serve(self) -> tuple[Connection, dict[str, Any]]:
        """Returns in the rank only: the connection to its actor, and its task."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._wake:
                    self._reap()
                elif isinstance(key.fileobj, Connection):
                    task = self._hear(key.fileobj)
                    if task is not None:
                        return key.fileobj, task

    def _accept(self) -> None:
        connection = Connection(self._listener.accept()[0].detach())
        self._actors[connection] = None
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: Connection) -> dict[str, Any] | None:
        """A task, in the rank that was forked for it; None here."""
        if connection not in self._actors:
            return None  # closed a moment ago
        try:
            task: dict[str, Any] = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            self._hang_up(connection)
            return None
        process = os.fork()
        if process:
            self._actors[connection] = process
            return None
        self._leave(connection)
        return task

    def _hang_up(self, connection: Connection) -> None:
        """The actor has gone or wants its rank ended."""
        process = self._actors.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        if process:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)  # it may not lead its group yet
                os.killpg(process, signal.SIGKILL)

    def _reap(self) -> None:
        """Tell the actors of ranks that have ended."""
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                process, status = ended
                for connection in [actor for actor, rank in self._actors.items() if rank == process]:
                    self._actors[connection] = None
                    with suppress(OSError):
                        connection.send_bytes(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())

    def _leave(self, kept: Connection) -> None:
        """In a rank: let go of everything of the server's but its own connection."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for connection in self._actors:
            if connection is not kept:
                connection.close()
        self._listener.close()
        os.close(self._wake)
        os.close(self._woken)


def enter_rank(task: dict[str, Any], server: int) -> None:
    """Make a process of its own of what was forked: session, environment, output."""
    os.setsid()  # a terminal's Ctrl-C is the launcher's to handle, and the rank with its children can be killed as one
    die_with_parent(server)
    os.environ.update(task["environment"])
    for path, mode, number in ((os.devnull, os.O_RDONLY, 0), (task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1)):
        file = os.open(path, mode, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"rank-{task['rank']}")  # what ps and top show


def execute_rank(task: dict[str, Any], connection: Connection) -> None:
    """Become a fresh process that runs the rank."""
    os.set_inheritable(connection.fileno(), True)
    words = [sys.executable, "-P", "-m", "cluster.worker", *task["arguments"], "--connection", str(connection.fileno())]
    os.execv(sys.executable, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
