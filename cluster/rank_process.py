"""The Ray actor that starts, watches and ends the process of one rank on its node."""

from __future__ import annotations

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

from cluster.network import free_port, interface_of
from distributed.run_folder import RunFolder

# Ray narrows these to an actor's own devices; see group_environment for why a node's ranks share them again.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_PIPE_BYTES = 65_000  # what a pipe holds unread: the result is read after the process has ended


@dataclass(frozen=True)
class NodeFacts:
    """What a rank's place looks like."""

    node: str
    address: str
    host: str
    interface: str
    cores: int
    devices: dict[str, str]
    sees_run: bool


@dataclass(frozen=True)
class RankTask:
    """What one rank is to run: environment on top of the node's own, and the words after `python -m cluster.worker`."""

    rank: int
    environment: dict[str, str]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: `result` of the training function, else `error`; `code` is the exit code (negative: a signal)."""

    rank: int
    host: str
    ended: float
    code: int | None = None
    result: str | None = None
    error: str | None = None


class RankProcess:
    """Made a Ray actor by the worker group; every method returns at once."""

    def __init__(self, run_path: str) -> None:
        self.run = RunFolder(Path(run_path))
        self.process: subprocess.Popen[bytes] | None = None
        self.outcome: Outcome | None = None

    def facts(self) -> NodeFacts:
        """Facts of the node this actor was placed on.

        Raises:
            ClusterError: no interface carries the node's address.
        """
        import ray

        address = ray.util.get_node_ip_address()
        return NodeFacts(
            node=ray.get_runtime_context().get_node_id(),
            address=address,
            host=socket.gethostname(),
            interface=interface_of(address),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            devices={name: os.environ[name] for name in DEVICE_VARIABLES if name in os.environ},
            sees_run=self.run.recipe_path.is_file(),
        )

    def free_port(self, address: str) -> int:
        """A port on this node for the ranks to meet at."""
        return free_port(address)

    def start(self, task: RankTask) -> int:
        """Start the rank's process, its output appended to its log; returns the process id."""
        reader, writer = os.pipe()
        command = [sys.executable, "-P", "-m", "cluster.worker", "--run", str(self.run.path), *task.arguments]
        command += ["--parent", str(os.getpid()), "--result-fd", str(writer)]
        code_root = str(Path(__file__).resolve().parent.parent)
        environment = {**os.environ, **task.environment, "PYTHONPATH": _prepend(code_root, os.environ.get("PYTHONPATH"))}
        self.run.logs.mkdir(parents=True, exist_ok=True)
        with rank_log(self.run, task.rank).open("ab") as log:
            log.write(f"--- rank {task.rank} starts, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            # A session of its own: a terminal's Ctrl-C is the launcher's to handle, and the group can be killed as one.
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True
            )
        os.close(writer)
        threading.Thread(target=self._await_end, args=(self.process, task.rank, reader), daemon=True).start()
        return self.process.pid

    def poll(self) -> Outcome | None:
        """How the rank ended, None while it runs."""
        return self.outcome

    def kill(self) -> None:
        """End the rank's process and its children now."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _await_end(self, process: subprocess.Popen[bytes], rank: int, reader: int) -> None:
        code = process.wait()
        ended = time.time()
        os.set_blocking(reader, False)  # a child of the rank may still hold the pipe open
        try:
            text = os.read(reader, _PIPE_BYTES)
        except BlockingIOError:
            text = b""
        os.close(reader)
        words = json.loads(text) if text else {}
        self.outcome = Outcome(rank, socket.gethostname(), ended, code, words.get("result"), words.get("error"))


def rank_log(run: RunFolder, rank: int) -> Path:
    """Where a rank's output goes."""
    return run.logs / f"rank-{rank:05d}.log"


def _prepend(folder: str, path: str | None) -> str:
    return f"{folder}{os.pathsep}{path}" if path else folder
