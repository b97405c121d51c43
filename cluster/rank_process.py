"""The Ray actor that starts, watches and ends the process of one rank on its node."""

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

from cluster.child import Child, Outcome
from cluster.network import free_ports, interface_of
from cluster.warm_up import modules_path
from distributed import heartbeat
from distributed.run_folder import RunFolder

# Ray narrows these to an actor's own devices; see group_environment for why a node's ranks share them again.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
FIXED_VARIABLES = ("OMP_NUM_THREADS", "PYTHONUNBUFFERED", "TOKENIZERS_PARALLELISM", *DEVICE_VARIABLES)
"""What is read when Python or torch loads: a spare process is of use only to a task that has them as they were."""

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
    """What one rank is to run: environment on top of the node's own, and the words after `python -m cluster.worker`.

    `spare`: keep a second process ready once training is under way.
    """

    rank: int
    environment: dict[str, str]
    arguments: tuple[str, ...]
    spare: bool = False


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
    """Made a Ray actor by the worker group; every method returns at once."""

    def __init__(self, run_path: str) -> None:
        self.run = RunFolder(Path(run_path))
        self.folder = own_folder()
        self.task: RankTask | None = None
        self.child: Child | None = None
        self.spare: Child | None = None

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

    def start(self, task: RankTask) -> int:
        """Start the rank's process, in the spare one if there is one; its output goes to its log. Returns the process id."""
        with contextlib.suppress(FileNotFoundError):
            self._beat_path.unlink()
        task.environment[heartbeat.VARIABLE] = str(self._beat_path)
        self.run.logs.mkdir(parents=True, exist_ok=True)
        log = rank_log(self.run, task.rank)
        spare = self._take_spare(task)
        with log.open("a") as file:
            how = "in a warm process, " if spare else ""
            file.write(f"--- rank {task.rank} starts, {how}{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        arguments = ("--run", str(self.run.path), *task.arguments)
        if spare:
            spare.assign(task.rank, task.environment, arguments, log)
        self.child = spare or Child(task.rank, task.environment, arguments, log)
        self.task = task
        return self.child.process.pid

    def report(self) -> RankReport:
        """How the rank stands. Makes a spare process once training is under way."""
        if self.child is None or self.task is None:
            raise RuntimeError("report before start")
        outcome, pulse = self.child.outcome, heartbeat.read_pulse(self._beat_path)
        if outcome:
            return RankReport(self.task.rank, outcome, pulse)
        if self.task.spare and self.spare is None and pulse and pulse.in_training:
            self._make_spare(self.task)
        age = time.time() - pulse.time if pulse else 0.0
        return RankReport(self.task.rank, None, pulse, age, _is_stopped(self.child.process.pid))

    def ask_for_stack(self) -> None:
        """Let the rank write all its threads' stacks to its log (faulthandler)."""
        if self.child is not None and self.child.outcome is None:
            self.child.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End the rank's process and its children now; the spare stays."""
        if self.child is not None:
            self.child.kill()

    def close(self) -> None:
        """End everything and tidy up."""
        self.kill()
        if self.spare is not None:
            self.spare.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _beat_path(self) -> Path:
        return self.folder / "beat"

    def _make_spare(self, task: RankTask) -> None:
        modules = modules_path(self._beat_path)
        if modules.exists():
            words = ("--warm-up", str(modules), "--run", str(self.run.path))
            self.spare = Child(task.rank, self._fixed(task), words, self.run.logs / "spares.log")

    def _take_spare(self, task: RankTask) -> Child | None:
        spare, self.spare = self.spare, None
        if spare is None:
            return None
        if spare.outcome is None and self.task is not None and self._fixed(self.task) == self._fixed(task):
            return spare
        spare.kill()
        return None

    @staticmethod
    def _fixed(task: RankTask) -> dict[str, str]:
        return {name: task.environment[name] for name in FIXED_VARIABLES if name in task.environment}


def own_folder() -> Path:
    """A folder of this process in memory, because a beat must not wait for a disk. Removes those of processes that were killed."""
    base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    for folder in base.glob(f"{_FOLDER}-{os.getuid()}-*"):
        process = folder.name.split("-")[3]
        if Path("/proc/self").exists() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER}-{os.getuid()}-{os.getpid()}-", dir=base))


def rank_log(run: RunFolder, rank: int) -> Path:
    """Where a rank's output goes."""
    return run.logs / f"rank-{rank:05d}.log"


def _is_stopped(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
