"""A child process that runs cluster/worker.py, and what became of it."""

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
from pathlib import Path

_PIPE_BYTES = 65_000  # what a pipe holds unread: the result is read after the process has ended


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
    """A worker process from its start to its outcome.

    With the argument `--warm-up` it loads modules and waits for `assign`; else it begins at once.
    """

    def __init__(self, rank: int, environment: dict[str, str], arguments: tuple[str, ...], log: Path) -> None:
        self.rank = rank
        self.outcome: Outcome | None = None
        reader, writer = os.pipe()
        command = [sys.executable, "-P", "-m", "cluster.worker", *arguments, "--parent", str(os.getpid()), "--result-fd", str(writer)]
        code_root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (code_root, os.environ.get("PYTHONPATH"))))
        with log.open("ab") as output:
            # A session of its own: a terminal's Ctrl-C is the launcher's to handle, and the group can be killed as one.
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment, "PYTHONPATH": path},
                stdin=subprocess.PIPE if "--warm-up" in arguments else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(writer,),
                start_new_session=True,
            )
        os.close(writer)
        threading.Thread(target=self._await_end, args=(reader,), daemon=True).start()

    def assign(self, rank: int, environment: dict[str, str], arguments: tuple[str, ...], log: Path) -> None:
        """Give a waiting process its task."""
        self.rank = rank
        task = {"environment": environment, "arguments": arguments, "log": str(log)}
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died a moment ago: its outcome will tell
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End the process and its children, stopped ones too."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _await_end(self, reader: int) -> None:
        code = self.process.wait()
        ended = time.time()
        os.set_blocking(reader, False)  # a child of the rank may still hold the pipe open
        try:
            text = os.read(reader, _PIPE_BYTES)
        except BlockingIOError:
            text = b""
        os.close(reader)
        words = json.loads(text) if text else {}
        self.outcome = Outcome(self.rank, socket.gethostname(), ended, code, words.get("result"), words.get("error"))
