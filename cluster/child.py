"""The process of a rank as its actor sees it, and what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster.recipes import CODE_ROOT

KILL_SECONDS = 4.0
"""Less than the worker group waits for an actor that ends its rank."""
SERVER_GONE = "the fork server of its host has ended, and all ranks there with it"


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: `result` of the training function, else `error`; `code` is the exit code (negative: a signal).

    `lost`: nothing is known but that its actor or its host is gone.
    """

    rank: int
    host: str
    ended: float
    code: int | None = None
    result: str | None = None
    error: str | None = None
    lost: bool = False


class Child:
    """A rank from its task to its outcome, forked by the server that listens at `fork_server`.

    Args:
        environment: on top of the server's.
        arguments: of cluster/worker.py.
        log: takes its output.
    """

    def __init__(self, rank: int, environment: dict[str, str], arguments: tuple[str, ...], log: Path, fork_server: Path) -> None:
        self.rank = rank
        self.pid: int | None = None
        self.outcome: Outcome | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        task = {"rank": rank, "environment": environment, "arguments": arguments, "log": str(log)}
        self._following = threading.Thread(target=self._follow, args=(fork_server, task), daemon=True)
        self._following.start()

    def signal(self, number: int) -> None:
        """Send the process a signal, if it lives."""
        if self.pid is not None and self.outcome is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process and its children, stopped ones too; returns when they have ended.

        Raises:
            TimeoutError: that cannot be said after KILL_SECONDS.
        """
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # the server ends a rank whose actor hangs up, and tells the exit code
        self._following.join(KILL_SECONDS)
        if self._following.is_alive():
            raise TimeoutError(f"rank {self.rank} (process {self.pid}) could not be ended within {KILL_SECONDS:g} s")

    def _follow(self, fork_server: Path, task: dict[str, Any]) -> None:
        words: dict[str, Any] = {}
        try:
            self._socket.connect(str(fork_server))
            connection = Connection(os.dup(self._socket.fileno()))
            connection.send_bytes(json.dumps(task).encode())
            while "code" not in words:
                words |= json.loads(connection.recv_bytes())
                self.pid = words.get("pid")
            connection.close()
        except Exception as fault:  # whatever it is, the rank is lost to this actor and must not be waited for
            words.setdefault("error", f"{SERVER_GONE} ({type(fault).__name__}: {fault}); its log is {fork_server_log(task['log'])}")
        self.outcome = Outcome(self.rank, socket.gethostname(), time.time(), words.get("code"), words.get("result"), words.get("error"))
        self._socket.close()


def fork_server_log(rank_log: str) -> Path:
    """The log of this host's fork server, beside those of its ranks."""
    return Path(rank_log).with_name(f"fork-server-{socket.gethostname()}.log")


class ServerProcess:
    """A fork server (fork_server.py) started by this process, listening at `path`."""

    def __init__(self, path: Path, environment: dict[str, str], arguments: tuple[str, ...], log: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        python_path = os.pathsep.join(filter(None, (str(CODE_ROOT), os.environ.get("PYTHONPATH"))))
        with socket.socket(socket.AF_UNIX) as listener, log.open("ab") as output:
            listener.bind(str(path))
            listener.listen()  # from now on tasks may come; they wait for the imports
            words = ("--parent", str(os.getpid()), "--listener", str(listener.fileno()))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cluster.fork_server", *arguments, *words],
                env={**os.environ, **environment, "PYTHONPATH": python_path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )

    @property
    def lives(self) -> bool:
        """Whether it serves."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it, and its ranks with it."""
        self._process.kill()
        self._process.wait()
