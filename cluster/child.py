"""The process of a rank as its actor sees it, and what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

KILL_SECONDS = 4.0


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
        """End the process and its children, stopped ones too."""
        if self.pid is not None and self.outcome is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self._hang_up()
        self._following.join(KILL_SECONDS)
        self._hang_up()

    def _hang_up(self) -> None:
        """The server ends a rank whose connection is closed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _follow(self, fork_server: Path, task: dict[str, Any]) -> None:
        words: dict[str, Any] = {}
        connection = Connection(os.dup(self._socket.fileno()))
        try:
            self._socket.connect(str(fork_server))
            connection.send_bytes(json.dumps(task).encode())
            while "code" not in words:
                words |= json.loads(connection.recv_bytes())
                self.pid = words.get("pid")
        except (EOFError, OSError):
            words.setdefault("error", "the fork server of its host has ended, and all ranks there with it")
        self.outcome = Outcome(self.rank, socket.gethostname(), time.time(), words.get("code"), words.get("result"), words.get("error"))
        connection.close()


class ServerProcess:
    """A fork server (fork_server.py) started by this process, listening at `path`."""

    def __init__(self, path: Path, environment: dict[str, str], arguments: tuple[str, ...], log: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        code_root = str(Path(__file__).resolve().parent.parent)
        python_path = os.pathsep.join(filter(None, (code_root, os.environ.get("PYTHONPATH"))))
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
