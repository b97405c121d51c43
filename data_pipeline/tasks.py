"""Run one function over many arguments: in this process, or as Ray tasks."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import DataError


class Runner(Protocol):
    """Something that runs tasks."""

    def map(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]], on_done: Callable[[int], None]) -> list[Any]:
        """`[function(*a) for a in arguments]`; `on_done(count)` after each that ends. A DataError of a task is raised."""


class InProcess:
    """Tasks one after another in this process."""

    def map(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]], on_done: Callable[[int], None]) -> list[Any]:
        """See Runner."""
        results = []
        for given in arguments:
            results.append(function(*given))
            on_done(len(results))
        return results


class OnRay:
    """Tasks of one CPU each on the Ray cluster this process is connected to.

    `here` keeps them on this machine: what is installed elsewhere is another corpus.
    """

    def __init__(self, here: bool) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(node, soft=False) if here else "SPREAD"
        # One thread a task: the tokenizer's own threads would compete with the other tasks.
        limits = {"env_vars": {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
        self._options = {"num_cpus": 1, "scheduling_strategy": strategy, "runtime_env": limits}

    def map(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]], on_done: Callable[[int], None]) -> list[Any]:
        """See Runner."""
        import ray

        task = ray.remote(function).options(**self._options)
        pending = {task.remote(*given): index for index, given in enumerate(arguments)}
        results: list[Any] = [None] * len(arguments)
        finished = 0
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            try:
                results[pending.pop(ready[0])] = ray.get(ready[0])
            except ray.exceptions.RayTaskError as fault:
                for reference in pending:
                    ray.cancel(reference)
                if isinstance(fault.cause, DataError):
                    raise DataError(str(fault.cause)) from None
                raise
            finished += 1
            on_done(finished)
        return results


@contextmanager
def runner(workers: int | None, here: bool) -> Iterator[Runner]:
    """Tasks in this process for `workers` 0 or where Ray is not installed; else on Ray, started here if it is not yet.

    A Ray of our own listens on loopback, keeps its files in a folder of its own and is gone afterwards.
    """
    if workers == 0:
        yield InProcess()
        return
    if "ray" not in sys.modules:  # a Ray of our own stays on loopback, with a token of its own; Ray reads both when imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        yield InProcess()
        return
    if ray.is_initialized():
        yield OnRay(here)
        return
    # Ray's socket names must stay below 108 bytes, which a long TMPDIR would not leave room for.
    short = "/tmp" if os.path.isdir("/tmp") else None
    with tempfile.TemporaryDirectory(prefix="mootron-ray-", dir=short, ignore_cleanup_errors=True) as folder:
        try:
            _start(folder, workers or os.cpu_count() or 1)
            yield OnRay(here=True)
        finally:
            ray.shutdown()


def _start(folder: str, cpus: int) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(dict.fromkeys([root, *filter(None, sys.path)]))
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
