"""Rank 0's part in a checkpoint: wait for all marks, then the manifest. Or clear away what was begun."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from importlib import metadata
from threading import Event

from distributed.checkpoint.fence import current_fence
from distributed.checkpoint.manifest import MANIFEST, Manifest, manifest_text, rank_file, read_manifest
from distributed.checkpoint.part import Job, Part
from distributed.checkpoint.storage import Checkpoint


class SaveFailedError(Exception):
    """A checkpoint could not be committed; the message says why."""


class SupersededError(SaveFailedError):
    """Another group of processes has taken the run over."""


def commit(job: Job, cancelled: Event) -> int:
    """Commit the checkpoint when every rank has left its mark; its bytes.

    Args:
        cancelled: set when some rank could not even leave a mark.

    Raises:
        SaveFailedError: a rank could not write, or the run was taken over. The storage's own faults pass through.
    """
    parts = _gather(job, cancelled)
    for rank, part in parts.items():
        if part.fault is not None:
            raise SaveFailedError(part.fault if job.world == 1 else f"rank {rank}: {part.fault}")
    if len(parts) < job.world:
        raise SaveFailedError("a worker could not write its part, see its log")
    manifest = _manifest(job, parts)
    _take_name(job, manifest_text(manifest).encode())
    with suppress(Exception):  # it is committed: what stays does no harm
        _tidy(job, manifest)
    return sum(record.size for record in manifest.files.values())


def _take_name(job: Job, text: bytes) -> None:
    """Write the manifest. A storage may fail after it took the name, or take it and be asked again: what lies there tells."""
    name = f"{job.folder}/{MANIFEST}"
    try:
        taken = job.storage.create(name, text, lambda: _check_fence(job))
    except SupersededError:
        raise
    except Exception:
        if not job.storage.exists(name) or job.storage.read(name) != text:
            raise
        return
    if not taken and job.storage.read(name) != text:
        raise SaveFailedError(f"checkpoint {job.folder} was committed by another process in the meantime")


def _check_fence(job: Job) -> None:
    """Run when the manifest lies beside its name: a group that takes over after this removes it, so the commit still fails."""
    refuse_after_take_over(job)


def refuse_after_take_over(job: Job) -> None:
    """Raise SupersededError if a later group has begun."""
    if job.fence and (now := current_fence(job.storage)) > job.fence:
        raise SupersededError(f"start {now} of this run has taken over from start {job.fence}")


def discard(job: Job) -> None:
    """Remove what this group wrote of a checkpoint that will not be. Best effort: what stays is cleared at the next start."""
    with suppress(Exception):
        names = job.storage.names(job.folder)
        if MANIFEST in names and read_manifest(Checkpoint(job.storage, job.folder)).fence == job.fence:
            return  # it was committed, though the storage could not say so
        for name in names:
            if _fence_of(name) == job.fence:
                job.storage.remove(f"{job.folder}/{name}")
        job.storage.remove(job.folder)


def _gather(job: Job, cancelled: Event) -> dict[int, Part]:
    """The marks by rank: of all ranks, or those that there are when there will be no more."""
    complete = cancelled.is_set()
    while True:
        names = set(job.storage.names(job.folder))
        marked = [rank for rank in range(job.world) if job.mark(rank) in names]
        if complete or len(marked) == job.world:
            return {rank: Part.model_validate_json(job.storage.read(f"{job.folder}/{job.mark(rank)}")) for rank in marked}
        refuse_after_take_over(job)  # a rank of a dead group never comes
        complete = cancelled.wait(job.storage.poll_seconds)


def _manifest(job: Job, parts: dict[int, Part]) -> Manifest:
    files = {rank_file(rank, job.world, job.fence): part for rank, part in parts.items()}
    return Manifest(
        step=job.step,
        meta=job.meta,
        versions=_versions(),
        layout=job.layout,
        fence=job.fence,
        pieces=[piece for part in parts.values() for piece in part.pieces],
        buffers={name: file for file, part in files.items() for name in part.buffers},
        files={file: part.record for file, part in files.items() if part.record is not None},
    )


def _tidy(job: Job, manifest: Manifest) -> None:
    """Remove marks, and what interrupted attempts and earlier groups left; never what a later group writes."""
    for name in job.storage.names(job.folder):
        fence = _fence_of(name)
        if fence is not None and fence <= job.fence and name not in manifest.files:
            job.storage.remove(f"{job.folder}/{name}")


def _fence_of(name: str) -> int | None:
    """The fencing number in the name of a rank's file or mark, half-written ones included; None for other names."""
    if not re.match(r"\.?(rank|part)-", name):
        return None
    match = re.search(r"-f(\d+)\.", name)
    return int(match[1]) if match else 0


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "deepspeed", "mosaicml-streaming", "ray", "triton"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
