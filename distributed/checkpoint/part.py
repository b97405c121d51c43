"""One rank's part in a checkpoint: its file, and the mark that tells rank 0 about it.

Ranks speak to each other through marks only, never through a collective, because this runs beside the training thread.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from pydantic import Field

from distributed.checkpoint.files import write_digested
from distributed.checkpoint.folder import step_name
from distributed.checkpoint.manifest import FileRecord, Meta, Piece, Record, rank_file
from distributed.checkpoint.snapshot import Snapshot
from distributed.checkpoint.storage import Storage
from distributed.fragment import Fragment


@dataclass(frozen=True)
class Job:
    """What one rank is to write: made on the training thread, read by the writer."""

    storage: Storage
    step: int
    fence: int
    rank: int
    layout: dict[str, int]
    snapshot: Snapshot
    pieces: list[Piece]
    buffers: list[str]
    meta: Meta

    @property
    def world(self) -> int:
        return self.layout["world"]

    @property
    def folder(self) -> str:
        return step_name(self.step)

    def mark(self, rank: int) -> str:
        """Name, in the folder, of a rank's mark."""
        return f"part-{rank:05d}-f{self.fence}.json"


class Part(Record):
    """A mark: what a rank wrote, or why it could not."""

    pieces: list[Piece] = Field(default_factory=list)
    buffers: list[str] = Field(default_factory=list)
    record: FileRecord | None = None
    fault: str | None = None


def write_part(job: Job) -> str | None:
    """Write this rank's file, then its mark; what went wrong, if anything. Nothing half-written stays."""
    name = rank_file(job.rank, job.world, job.fence)
    try:
        record = write_digested(job.storage, f"{job.folder}/{name}", job.snapshot.chunks())
        _leave_mark(job, Part(pieces=job.pieces, buffers=job.buffers, record=record))
        return None
    except Exception as fault:  # a storage backend may raise anything, and training goes on whatever it is
        reason = explain(fault)
    with suppress(Exception):  # without a mark rank 0 hears of it when the training threads share the outcome
        job.storage.remove(f"{job.folder}/{name}")  # makes room for the mark, if room was the trouble
        _leave_mark(job, Part(fault=reason))
    return reason


def explain(fault: Exception) -> str:
    """A fault in words; the type only where the words alone may not do."""
    return str(fault) if isinstance(fault, OSError) and str(fault) else f"{type(fault).__name__}: {fault}"


def pieces_of(fragments: list[Fragment], file: str) -> list[Piece]:
    """What the manifest says of a rank's fragments."""
    return [
        Piece(
            name=fragment.name,
            file=file,
            global_shape=fragment.box.global_shape,
            offset=fragment.box.offset,
            shape=fragment.box.shape,
            start=fragment.start,
            stop=fragment.stop,
            states=list(fragment.tensors),
        )
        for fragment in fragments
    ]


def _leave_mark(job: Job, part: Part) -> None:
    job.storage.write(f"{job.folder}/{job.mark(job.rank)}", [part.model_dump_json().encode()])
