"""A pool of long-lived worker processes for tests that need several ranks.

    results = pool.run(4, "exchange_work:compare", experts=7)

runs `compare(experts=7)` of `tests/distributed/exchange_work.py` in four processes whose RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE and MASTER_* are set as a launcher would, and returns the four results in rank order.
A call costs milliseconds. Starting a process would cost ten seconds of imports: a fork server pays them once for all.
The pool holds the store at which the ranks of a call meet, so that no port is chosen before it is bound.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pool_worker import serve
from torch.distributed import TCPStore

MAX_WORLD = 4
GRACE_SECONDS = 5.0


IMPORTED_ONCE = ["deepspeed.runtime.engine", "torch._dynamo", "torch.utils.tensorboard", "distributed.trainer", "pool_worker"]


class WorkerError(AssertionError):
    """A rank raised, died or hung; the message holds its traceback or the end of its log."""


class Pool:
    """Worker processes for ranks 0..MAX_WORLD-1: started when first needed, replaced after they died or hung."""

    def __init__(self) -> None:
        self._context = _context()
        self._folder = Path(tempfile.mkdtemp(prefix="mootron-pool-"))
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._store: TCPStore | None = None
        atexit.register(self.close)

    def run(self, world: int, target: str, *, timeout: float = 120.0, **arguments: Any) -> list[Any]:
        """Call `target` ("module:function") with `arguments` in ranks 0..world-1; their results in rank order.

        Raises:
            WorkerError: a rank raised (its traceback), died (its exit code) or gave no answer in `timeout` seconds
                (its stack); the message names the rank.
        """
        if not 1 <= world <= MAX_WORLD:
            raise ValueError(f"world is {world}; the pool has 1 to {MAX_WORLD} ranks")
        self._start(world)
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(world):
            self._workers[rank][1].send_bytes(pickle.dumps((target, _environment(rank, world, self._store.port), arguments)))
        results, faults = self._collect(world, timeout)
        if faults:
            raise WorkerError(f"{target} in a world of {world}\n" + "\n".join(faults))
        return results

    def close(self) -> None:
        """End the workers; a later `run` starts new ones."""
        for _, calls in self._workers.values():
            calls.close()
        for process, _ in self._workers.values():
            process.join(timeout=5)
            process.kill()
            process.join()
        self._workers = {}
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, world: int) -> None:
        """Have a worker for every rank of the world, ready for a call."""
        self._folder.mkdir(exist_ok=True)
        new = [rank for rank in range(world) if rank not in self._workers]
        for rank in new:
            self._log(rank).write_text("")
            mine, theirs = self._context.Pipe()
            process = self._context.Process(target=serve, args=(theirs, str(self._log(rank))), name=f"rank-{rank}")
            with _one_thread():
                process.start()
            theirs.close()
            self._workers[rank] = process, mine
        for rank in new:
            try:
                self._workers[rank][1].recv_bytes()
            except (EOFError, ConnectionResetError):
                raise WorkerError(self._obituary(rank)) from None

    def _collect(self, world: int, timeout: float) -> tuple[list[Any], list[str]]:
        """Results in rank order, and what went wrong; ranks that gave no answer are ended."""
        results: list[Any] = [None] * world
        faults: list[str] = []
        pending = {self._workers[rank][1]: rank for rank in range(world)}
        deadline = time.monotonic() + timeout
        while pending and (ready := wait(list(pending), max(0.0, deadline - time.monotonic()))):
            for calls in ready:
                assert isinstance(calls, Connection)
                rank = pending.pop(calls)
                try:
                    succeeded, result = pickle.loads(calls.recv_bytes())
                except (EOFError, ConnectionResetError):
                    faults.append(self._obituary(rank))
                    continue
                if succeeded:
                    results[rank] = result
                else:
                    faults.append(f"rank {rank} raised:\n{result}")
            if faults:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        faults.extend(self._stack(rank, timeout) for rank in pending.values())
        for rank in pending.values():
            self._forget(rank)
        return results, faults

    def _forget(self, rank: int) -> None:
        """End a worker that is of no use any more; the next call starts another."""
        process, calls = self._workers.pop(rank)
        calls.close()
        process.kill()
        process.join()

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"

    def _tail(self, rank: int) -> str:
        return self._log(rank).read_text(errors="replace")[-4000:]

    def _obituary(self, rank: int) -> str:
        process = self._workers[rank][0]
        process.join(timeout=5)
        self._forget(rank)
        return f"rank {rank} died with exit code {process.exitcode}; the end of its log:\n{self._tail(rank)}"

    def _stack(self, rank: int, timeout: float) -> str:
        """Ask a silent rank for its stack, which it writes into its log."""
        process = self._workers[rank][0]
        before = self._log(rank).stat().st_size
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and self._log(rank).stat().st_size == before:
            time.sleep(0.05)
        return f"rank {rank} gave no answer (limit {timeout:g} s); the end of its log:\n{self._tail(rank)}"


def _context() -> Any:
    """A fork server that has imported what ranks need; with an accelerator, new processes, for its driver bears no fork."""
    if Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    return context


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    """A launcher's variables. The last one says that the store is served already, as torchrun's agent does."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenMP reads its variable when a process starts; spinning threads of several ranks slow each other down."""
    inherited = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if inherited is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = inherited
