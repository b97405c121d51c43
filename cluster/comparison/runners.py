"""Where the runs of a comparison are trained: on Ray, as many at once as there is room for, or one after another as child processes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from cluster.comparison.piece import start_piece
from cluster.sizing import local_gpus
from distributed.run_folder import RunFolder, project_root


class Runner(Protocol):
    """Starts processes and tells which have ended.

    Attributes:
        at_once: how many runs it has room for.
    """

    at_once: int

    def start(self, run: RunFolder) -> None:
        """Begin to train a run whose folder holds its recipe."""
        ...

    def ended(self) -> dict[Path, int]:
        """Exit codes of the runs that ended since the last call, by folder."""
        ...


class ChildRunner:
    """One run after another, as child processes of this one: all that it needs is what the trainer needs."""

    def __init__(self) -> None:
        self.at_once = 1
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, run: RunFolder) -> None:
        self._children[run.path] = start_piece(run.path, self.at_once)

    def ended(self) -> dict[Path, int]:
        codes = {path: child.poll() for path, child in self._children.items()}
        done = {path: code for path, code in codes.items() if code is not None}
        for path in done:
            del self._children[path]
        return done

    def kill(self) -> None:
        """End what is at work, at once."""
        for child in self._children.values():
            child.kill()
            child.wait()


class RayRunner:
    """A Ray task a run, with a core of its own, and a GPU of its own where the cluster has any."""

    def __init__(self) -> None:
        import ray

        amounts = ray.cluster_resources()
        gpus, cpus = int(amounts.get("GPU", 0)), int(amounts.get("CPU", 0))
        self.at_once = max(1, min(gpus, cpus) if gpus else cpus)
        # A crash of the process is the run's failure, not the task's: it is never tried again behind our back.
        self._task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(_run_to_end)
        self._tasks: dict[Path, Any] = {}

    def start(self, run: RunFolder) -> None:
        self._tasks[run.path] = self._task.remote(str(run.path), self.at_once, str(project_root()))

    def ended(self) -> dict[Path, int]:
        import ray

        if not self._tasks:
            return {}
        ready, _ = ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=0)
        done = {path: _code(task) for path, task in self._tasks.items() if task in ready}
        for path in done:
            del self._tasks[path]
        return done


@contextlib.contextmanager
def open_runner(local: bool, address: str | None) -> Iterator[Runner]:
    """Ray (a private one, or the cluster at `address`) where it is installed and not declined, else child processes."""
    if local or not ray_installed():
        children = ChildRunner()
        try:
            yield children
        finally:
            children.kill()
        return
    from cluster.ray_session import ray_session

    with ray_session(address, cpus=len(os.sched_getaffinity(0)), gpus=local_gpus()):
        yield RayRunner()


def ray_installed() -> bool:
    """Whether Ray could be imported here."""
    return importlib.util.find_spec("ray") is not None


def _run_to_end(folder: str, at_once: int, home: str) -> int:
    """The Ray task."""
    return start_piece(Path(folder), at_once, home).wait()


def _code(task: Any) -> int:
    """A task that Ray lost counts as killed."""
    import ray

    try:
        return int(ray.get(task))
    except ray.exceptions.RayError:
        return -9
