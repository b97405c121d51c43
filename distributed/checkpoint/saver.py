"""Saving beside training: copy to host memory and write in the background; one save on its way at a time.

Collectives happen on the training thread alone, when a save is begun and when its outcome is shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distributed import collectives
from distributed.checkpoint.folder import is_committed, set_aside, step_name
from distributed.checkpoint.manifest import Meta, rank_file, read_manifest
from distributed.checkpoint.part import Job, pieces_of
from distributed.checkpoint.snapshot import HostBuffer, live_tensors
from distributed.checkpoint.storage import Checkpoint, Storage
from distributed.checkpoint.writing import Writing
from distributed.errors import RunError
from distributed.fragment import Fragment
from distributed.topology import Topology

COMMITTED, FAILED, SUPERSEDED = 0, 1, 2
MENTION_SECONDS = 0.1
"""A shorter wait for the save before is no news."""


class Saver:
    """One rank's saves. All ranks call `save`, `finish` and `close` together; `poll` and `settle` ask nobody.

    Args:
        fence: this group's number, equal on all ranks (`raise_fence`); 0 where nobody else can write.
        asynchronous: go on while the file is written; else `save` returns when the checkpoint is committed or has failed.
        after_commit: called on rank 0 after every commit, beside training.
        report: takes messages for the user.
    """

    def __init__(
        self,
        storage: Storage,
        topology: Topology,
        fence: int = 0,
        asynchronous: bool = True,
        after_commit: Callable[[], object] = lambda: None,
        report: Callable[[str], None] = print,
    ) -> None:
        self._storage, self._topology, self._fence, self._asynchronous = storage, topology, fence, asynchronous
        self._after_commit, self._report = after_commit, report
        self._buffer = HostBuffer()
        self._writing: Writing | None = None
        self._last_fault: str | None = None
        self.newest: int | None = None
        """Step of the last checkpoint known to be committed; the caller sets it to the one it loaded."""
        self.events: list[dict[str, Any]] = []
        """What happened: {"time", "kind": "committed" | "failed" | "waited", "step", "seconds", ...}, seconds of the writer or the wait."""

    def save(self, step: int, fragments: list[Fragment], buffers: dict[str, Tensor], meta: Meta) -> None:
        """Begin checkpoint `step`. A step that is committed already is left alone: a run computes one thing.

        The tensors must not change before `settle` or `finish`. Waits for the save before, if that is still on its way. A save
        that fails raises nothing here: see `events`.

        Args:
            fragments: this rank's, from the engine.
            buffers: replicated tensors by name (running statistics); rank 0's are written.
            meta: counters and what a reader wants to know; rank 0's is written.

        Raises:
            RunError: another group of processes has taken the run over.
        """
        self._finish_the_one_before(step)
        known = self._topology.rank == 0 and self._is_known(step)
        if collectives.any_rank(known, self._topology, "checkpoint.known"):
            self.newest, self._last_fault = step, None
            return
        self._writing = Writing(self._job(step, fragments, buffers, meta), self._after_commit, yield_cores=self._asynchronous)
        if not self._asynchronous:
            self.finish()

    def settle(self) -> None:
        """Have copied all that was given to `save`: call before the optimizer changes it."""
        if self._writing is not None and not self._writing.written.is_set():
            self._writing.job.snapshot.settle()

    def poll(self) -> None:
        """Tell of a save that has ended since; cheap and local, for every step boundary."""
        writing = self._writing
        if writing is not None and (writing.done.is_set() or writing.part_fault):
            self._tell(writing)

    def finish(self) -> None:
        """Wait until nothing is on its way, and agree on what came of it.

        Raises:
            RunError: another group of processes has taken the run over.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        writing.written.wait()
        if self._worst(FAILED if writing.part_fault else COMMITTED, "checkpoint.written") != COMMITTED:
            writing.cancel()
        writing.done.wait()
        self._tell(writing)
        own = SUPERSEDED if writing.superseded else FAILED if writing.fault else COMMITTED
        outcome = self._worst(own, "checkpoint.committed")
        step = writing.job.step
        self._last_fault = None if outcome == COMMITTED else writing.fault or "another worker failed, see its log"
        if outcome == COMMITTED:
            self.newest = step
        if outcome == SUPERSEDED:
            raise RunError(f"checkpoint of step {step} was not committed: {self._last_fault}; this group of processes ends")

    def close(self) -> None:
        """Wait for the last save.

        Raises:
            RunError: it failed, so what came after the checkpoint before would be lost; on all ranks.
        """
        self.finish()
        if self._last_fault is not None:
            raise RunError(
                f"checkpoint in {self._storage.address} cannot be written: {self._last_fault}; "
                "make room or mend the folder's rights, then resume"
            )

    def _finish_the_one_before(self, step: int) -> None:
        late = self._writing if self._writing is not None and not self._writing.done.is_set() else None
        started = time.monotonic()
        self.finish()
        if late is None or not self._asynchronous:
            return
        waited = time.monotonic() - started
        self._note("waited", step, waited, on=late.job.step)
        if self._topology.rank == 0 and waited >= MENTION_SECONDS:
            self._report(
                f"checkpoint of step {late.job.step} was still being written when step {step} was due: training waited "
                f"{waited:.1f} s; save less often (checkpoint.every)"
            )

    def _is_known(self, step: int) -> bool:
        """Whether this step is saved. What a dead group committed since this one began is set aside: files of it may be gone."""
        checkpoint = Checkpoint(self._storage, step_name(step))
        if not is_committed(self._storage, checkpoint.name):
            return False
        if step <= (self.newest or 0) or read_manifest(checkpoint).fence >= self._fence:
            return True
        self._report(
            f"checkpoint of step {step} was committed late by a group that was replaced; it is {set_aside(checkpoint, 'late')} now"
        )
        return False

    def _job(self, step: int, fragments: list[Fragment], buffers: dict[str, Tensor], meta: Meta) -> Job:
        """What this rank writes."""
        topology = self._topology
        kept = buffers if topology.rank == 0 else {}
        return Job(
            storage=self._storage,
            step=step,
            fence=self._fence,
            rank=topology.rank,
            layout={
                "world": topology.world,
                "expert_parallel": topology.experts.size,
                "table_parallel": topology.tables.size,
                "threads": torch.get_num_threads(),
            },
            snapshot=self._buffer.take(*live_tensors(fragments, kept)),
            pieces=pieces_of(fragments, rank_file(topology.rank, topology.world, self._fence)),
            buffers=list(kept),
            meta=meta,
        )

    def _tell(self, writing: Writing) -> None:
        """Once a save: what came of it, for the user and for figures."""
        if writing.told:
            return
        writing.told = True
        step = writing.job.step
        if writing.fault is not None:
            self._note("failed", step, writing.seconds, reason=writing.fault)
            self._report(
                f"checkpoint of step {step} was not saved: {writing.fault}; training goes on, "
                "the checkpoints before are kept and the next save is tried as usual"
            )
        elif self._topology.rank == 0:
            self.newest = step
            self._note("committed", step, writing.seconds, bytes=writing.bytes)
            if writing.retention_fault is not None:
                self._report(f"older checkpoints could not be deleted: {writing.retention_fault}")

    def _note(self, kind: str, step: int, seconds: float, **more: Any) -> None:
        self.events.append({"time": time.time(), "kind": kind, "step": step, "seconds": seconds, **more})

    def _worst(self, outcome: int, name: str) -> int:
        """The worst outcome of all ranks."""
        return collectives.largest(outcome, self._topology, name)
