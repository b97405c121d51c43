"""Saving: every rank writes what it owns, rank 0 commits. No gather, and every range is written once.

12 bytes a parameter for AdamW (fp32 master and two moments); bf16 weights are not stored, they follow from the masters.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from distributed import collectives
from distributed.checkpoint.files import flush, write_tensors, write_text
from distributed.checkpoint.folder import checkpoint_path, is_committed
from distributed.checkpoint.manifest import MANIFEST, FileRecord, Manifest, Meta, Piece, Record, manifest_text, rank_file
from distributed.errors import RunError
from distributed.fragment import Fragment
from distributed.topology import Topology


class Part(Record):
    """What a rank tells rank 0 about its file."""

    pieces: list[Piece]
    buffers: list[str]
    record: FileRecord


def save(folder: Path, step: int, fragments: list[Fragment], buffers: dict[str, Tensor], meta: Meta, topology: Topology) -> Path:
    """Write checkpoint `step` below `folder` and return its path when it is whole on disk.

    All ranks call it. A step that is already there whole is left alone: a run computes one thing.

    Args:
        fragments: this rank's, from the engine.
        buffers: replicated tensors by name (running statistics); rank 0's are written.
        meta: counters and what a reader wants to know; rank 0's is written.

    Raises:
        RunError: a rank could not write, on all ranks.
    """
    path = checkpoint_path(folder, step)
    if is_committed(path):
        return path
    snapshot = _snapshot(fragments, buffers if topology.rank == 0 else {})
    _together(lambda: _write_part(path, fragments, snapshot, topology), path, topology, "checkpoint.written")
    _together(lambda: _commit(path, step, meta, topology), path, topology, "checkpoint.committed")
    return path


def _snapshot(fragments: list[Fragment], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host, by key. Copies and not views: a view would be saved with its whole storage or refused."""
    live = {f"{state}/{fragment.name}": view for fragment in fragments for state, view in fragment.tensors.items()}
    live |= {f"buffer/{name}": tensor for name, tensor in buffers.items()}
    copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in live.items()}
    copies["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        copies["random/cuda"] = torch.cuda.get_rng_state()
    return copies


def _write_part(path: Path, fragments: list[Fragment], snapshot: dict[str, Tensor], topology: Topology) -> None:
    path.mkdir(parents=True, exist_ok=True)
    name = rank_file(topology.rank, topology.world)
    record = write_tensors(path / name, snapshot)
    pieces = [
        Piece(
            name=fragment.name,
            file=name,
            global_shape=fragment.box.global_shape,
            offset=fragment.box.offset,
            shape=fragment.box.shape,
            start=fragment.start,
            stop=fragment.stop,
            states=list(fragment.tensors),
        )
        for fragment in fragments
    ]
    buffers = [key.removeprefix("buffer/") for key in snapshot if key.startswith("buffer/")]
    write_text(_part_path(path, topology.rank), Part(pieces=pieces, buffers=buffers, record=record).model_dump_json())


def _commit(path: Path, step: int, meta: Meta, topology: Topology) -> None:
    if topology.rank != 0:
        return
    ranks = range(topology.world)
    parts = {rank_file(rank, topology.world): Part.model_validate_json(_part_path(path, rank).read_bytes()) for rank in ranks}
    manifest = Manifest(
        step=step,
        meta=meta,
        versions=_versions(),
        layout={"world": topology.world, "expert_parallel": topology.expert_parallel, "threads": torch.get_num_threads()},
        pieces=[piece for part in parts.values() for piece in part.pieces],
        buffers={name: file for file, part in parts.items() for name in part.buffers},
        files={file: part.record for file, part in parts.items()},
    )
    for stale in path.iterdir():  # what an interrupted attempt, perhaps in a larger world, left here
        if stale.name not in manifest.files:
            stale.unlink()
    flush(path.parent)
    write_text(path / MANIFEST, manifest_text(manifest))


def _together(action: Callable[[], None], path: Path, topology: Topology, name: str) -> None:
    """Run `action` here; if it fails on any rank, all ranks raise, so that none waits for one that gave up."""
    fault: Exception | None = None
    try:
        action()
    except (OSError, SafetensorError) as caught:
        fault = caught
    if collectives.any_rank(fault is not None, topology, name):
        reason = fault or "another worker failed, see its log"
        raise RunError(f"checkpoint {path} cannot be written: {reason}; make room or mend the folder's rights, then resume")


def _part_path(path: Path, rank: int) -> Path:
    return path / f"part-{rank:05d}.json"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "deepspeed", "mosaicml-streaming", "ray", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
