"""The Ray actor that starts, watches and ends the process of one rank on its node; the node's first one also keeps its fork server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.child import Child, Outcome, ServerProcess, fork_server_log
from cluster.network import free_ports, interface_of
from distributed import heartbeat
from distributed.run_folder import RunFolder

# Ray narrows these to an actor's own devices; see group_environment for why a node's ranks share them again.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_FOLDER = "mootron-rank"


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
    """What one rank is to run: environment on top of the node's own, the words after `python -m cluster.worker`, and where to fork."""

    rank: int
    environment: dict[str, str]
    arguments: tuple[str, ...]
    fork_server: str


@dataclass(frozen=True)
class RankReport:
    """How a rank stands: its outcome once it has ended, else its last pulse and how old that is on its own host.

    `stopped`: its process was stopped by a signal; `heard`: its actor answered lately.
    """

    rank: int
    outcome: Outcome | None = None
    pulse: heartbeat.Pulse | None = None
    pulse_age: float = 0.0
    stopped: bool = False
    heard: bool = True


class RankProcess:
    """Made a Ray actor by the worker group; every method but `kill` and `close` returns at once."""

    def __init__(self, run_path: str) -> None:
        self.run = RunFolder(Path(run_path))
        self.folder = own_folder()
        self.child: Child | None = None
        self.server: ServerProcess | None = None

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

    def free_ports(self, address: str, count: int) -> list[int]:
        """Ports on this node for the ranks to meet at."""
        return free_ports(address, count)

    def serve_forks(self, environment: dict[str, str], arguments: tuple[str, ...]) -> str:
        """Have a fork server for this node's ranks; where it listens. It starts at once and imports meanwhile.

        Args:
            environment: holds what is read when Python and torch load, such as OMP_NUM_THREADS.
            arguments: of cluster/worker.py; they say what to import.
        """
        if self.server is None or not self.server.lives:
            self.run.logs.mkdir(parents=True, exist_ok=True)
            log = fork_server_log(str(rank_log(self.run, 0)))
            self.server = ServerProcess(self.folder / "fork-server", environment, self._words(arguments), log)
        return str(self.server.path)

    def start(self, task: RankTask) -> None:
        """Start the rank's process; its output goes to its log."""
        with contextlib.suppress(FileNotFoundError):
            self._beat_path.unlink()
        environment = {**task.environment, heartbeat.VARIABLE: str(self._beat_path)}
        self.run.logs.mkdir(parents=True, exist_ok=True)
        log = rank_log(self.run, task.rank)
        with log.open("a") as file:
            file.write(f"--- rank {task.rank} starts, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self.child = Child(task.rank, environment, self._words(task.arguments), log, Path(task.fork_server))

    def report(self) -> RankReport:
        """How the rank stands."""
        if self.child is None:
            raise RuntimeError("report before start")
        rank, outcome, pulse = self.child.rank, self.child.outcome, heartbeat.read_pulse(self._beat_path)
        if outcome:
            return RankReport(rank, outcome, pulse)
        age = time.time() - pulse.time if pulse else 0.0
        return RankReport(rank, None, pulse, age, self.child.pid is not None and _is_stopped(self.child.pid))

    def ask_for_stack(self) -> None:
        """Let the rank write all its threads' stacks to its log (faulthandler)."""
        if self.child is not None:
            self.child.signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End the rank's process and its children now; the fork server stays.

        Raises:
            TimeoutError: they do not end.
        """
        if self.child is not None:
            self.child.kill()

    def close(self) -> None:
        """End everything and tidy up."""
        with contextlib.suppress(TimeoutError):
            self.kill()
        if self.server is not None:
            self.server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _words(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        return ("--run", str(self.run.path), *arguments)

    @property
    def _beat_path(self) -> Path:
        return self.folder / "beat"


def own_folder() -> Path:
    """A folder of this process in memory, because a beat must not wait for a disk. Removes those of processes that were killed."""
    base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    own = f"{_FOLDER}-{os.getuid()}-{process_namespace()}-"
    for folder in base.glob(f"{own}*"):
        process = folder.name.removeprefix(own).partition("-")[0]
        if Path("/proc/self").exists() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{own}{os.getpid()}-", dir=base))


def process_namespace() -> int:
    """Names the set of processes that this one sees: containers may share a memory folder and not their process numbers."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def rank_log(run: RunFolder, rank: int) -> Path:
    """Where a rank's output goes."""
    return run.logs / f"rank-{rank:05d}.log"


def _is_stopped(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
