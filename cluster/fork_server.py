"""The process that the ranks of a host are forked from: it has imported what training needs.

Imports cost some ten CPU seconds. Here they are paid once for all ranks of a host and all their restarts, and the memory of what
was imported is shared. It has one thread, because what a fork copies must not hold a lock of another; and it touches no device,
because a driver bears no fork: where something it imported did, ranks are fresh processes instead.

    actor                           fork server                     rank
    {"rank", "environment", ...} -> fork                         -> {"pid": 7}, trains, {"result": "finished"}
                                    {"code": 0} when it has ended

A rank is ended when its actor hangs up, and all are when the server or the actor that started it ends. What a rank leaves behind is
ended with it.
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
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster import worker
from cluster.errors import USER_ERRORS
from cluster.lifeline import die_with_parent
from cluster.loader_server import start_loader_server
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

CUDA_NOT_INITIALIZED = 3  # cuda.h: CUDA_ERROR_NOT_INITIALIZED
ROCM_DEVICE = Path("/dev/kfd")
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


def main(argv: list[str]) -> int:
    """Import, then fork; in a rank, run it and return its exit code."""
    parser = argparse.ArgumentParser(prog="cluster.fork_server")
    parser.add_argument("--run", required=True)
    parser.add_argument("--target", default=worker.TRAINER)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--listener", type=int, required=True)
    args, _ = parser.parse_known_args(argv)  # the others are the worker's
    die_with_parent(args.parent)
    hindrance = import_all(args.target, Path(args.run))
    server = os.getpid()
    connection, task = ForkServer(socket.socket(fileno=args.listener)).serve()
    enter_rank(task, server)
    if hindrance:
        execute_rank(task, connection)
    with suppress(*USER_ERRORS):  # the worker reads it again and says what is wrong
        if RunFolder(Path(args.run)).recipe().data.loader_workers:
            start_loader_server()
    return worker.main(task["arguments"], connection)


def import_all(target: str, run: Path) -> str | None:
    """Load what the target needs, at its start and later; what hinders forking after that, if anything does.

    What cannot be loaded is the rank's to complain of.
    """
    began = time.monotonic()
    hindrance = "ROCm does not tell whether its driver was started" if ROCM_DEVICE.exists() else None
    if hindrance is None:
        os.environ[NVML_CHECK] = "1"  # torch then asks for devices without touching their driver
        _attempt(lambda: worker.load_function(target))
        if "distributed.trainer" in sys.modules:
            _attempt(lambda: _load_later_modules(RunFolder(run).recipe()))
        del os.environ[NVML_CHECK]
        gc.freeze()  # what lives now is never looked at again, so the ranks go on sharing its pages
        hindrance = hindrance_to_fork()
    how = f"ranks are fresh processes: {hindrance}" if hindrance else "ranks are forked from it"
    print(f"fork server {os.getpid()} is ready after {time.monotonic() - began:.1f} s; {how}", flush=True)
    return hindrance


def _attempt(load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as fault:
        print(f"not loaded ahead: {type(fault).__name__}: {fault}", flush=True)


def _load_later_modules(recipe: Recipe) -> None:
    """What a trainer loads on its way: its engine, and what torch's optimizers and summaries load when made."""
    if recipe.train.engine != "plain":
        importlib.import_module("distributed.engine_deepspeed")
        importlib.import_module("deepspeed.runtime.engine")
    for name in ("distributed.engine_plain", "distributed.checkpoint.local_storage", "torch._dynamo", "torch.utils.tensorboard"):
        importlib.import_module(name)


def hindrance_to_fork() -> str | None:
    """Why a fork of this process could not do what it does: other threads, or a driver that was started. To be asked before a fork."""
    if threading.active_count() > 1:
        return f"an import started threads: {', '.join(thread.name for thread in threading.enumerate())}"
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None  # nothing has loaded it
    if driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == CUDA_NOT_INITIALIZED:
        return None
    return "an import started CUDA's driver"


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
            if connection.poll():
                raise EOFError("the actor has gone already")
        except (EOFError, OSError):
            self._end(connection)
            return None
        process = os.fork()
        if process:
            self._actors[connection] = process
            return None
        self._leave(connection)
        return task

    def _end(self, connection: Connection) -> None:
        """The actor has gone, or wants its rank ended and waits for the exit code."""
        process = self._actors[connection]
        if process is None:
            self._close(connection)
            return
        self._selector.unregister(connection)
        os.kill(process, signal.SIGKILL)  # not reaped yet, so it is no other's number
        _kill_group(process)

    def _close(self, connection: Connection) -> None:
        del self._actors[connection]
        with suppress(KeyError):
            self._selector.unregister(connection)
        connection.close()

    def _reap(self) -> None:
        """End what ranks that have ended left behind, and tell their actors."""
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                _kill_group(ended.si_pid)
                code = os.waitstatus_to_exitcode(os.waitpid(ended.si_pid, 0)[1])
                for connection in [actor for actor, rank in self._actors.items() if rank == ended.si_pid]:
                    with suppress(OSError):
                        connection.send_bytes(json.dumps({"code": code}).encode())
                    self._close(connection)

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


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):  # it never led one, or was alone
        os.killpg(leader, signal.SIGKILL)


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
