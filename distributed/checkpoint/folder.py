"""A run's checkpoints: which there are, the newest whole one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from distributed import collectives
from distributed.checkpoint.files import verify_files
from distributed.checkpoint.manifest import MANIFEST, DamagedError, read_manifest
from distributed.checkpoint.storage import Checkpoint, Storage, as_storage
from distributed.errors import RunError
from distributed.topology import Topology


def step_name(step: int) -> str:
    """The folder of checkpoint `step`."""
    return f"step-{step:08d}"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where checkpoint `step` lies in a local folder."""
    return folder / step_name(step)


def step_folders(storage: Storage) -> dict[int, str]:
    """All folders of steps, committed or not, oldest first; those set aside have other names."""
    found = [(int(match[1]), name) for name in storage.names() if (match := re.fullmatch(r"step-(\d{8,})", name))]
    return dict(sorted(found))


def is_committed(storage: Storage, name: str) -> bool:
    """Whether a checkpoint was written to its end (it may be damaged since)."""
    return storage.exists(f"{name}/{MANIFEST}")


def list_checkpoints(place: Storage | Path) -> dict[int, Checkpoint]:
    """Committed checkpoints by step, oldest first. Half-written and damaged ones are not among them."""
    storage = as_storage(place)
    return {step: Checkpoint(storage, name) for step, name in step_folders(storage).items() if is_committed(storage, name)}


def newest(place: Storage | Path, topology: Topology | None = None, report: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest whole checkpoint, its digests verified; None when there is none.

    A damaged one is renamed aside with a message, and the one before it is tried. With a topology all ranks call it
    together and share the reading.

    Args:
        report: takes the messages, on the rank that has something to say.
    """
    storage = as_storage(place)
    rank, world = (topology.rank, topology.world) if topology else (0, 1)
    while True:
        step = _agree_on_newest(storage, topology)
        if step is None:
            return None
        checkpoint = Checkpoint(storage, step_name(step))
        fault = _damage(checkpoint, rank, world)
        if fault:
            report(f"checkpoint {checkpoint.name} is damaged: {fault}")
        if not _any_rank(fault is not None, topology, "checkpoint.verified"):
            return checkpoint
        if rank == 0:
            report(f"set aside as {set_aside(checkpoint, 'damaged')}; trying the one before it")
        _any_rank(False, topology, "checkpoint.set_aside")  # nobody lists the folder before the rename


def chosen(place: Storage | Path, step: int) -> Checkpoint:
    """Checkpoint `step`, its digests verified.

    Raises:
        RunError: it is not there (the message lists those that are), or damaged.
    """
    storage = as_storage(place)
    known = list_checkpoints(storage)
    steps = ", ".join(map(str, known)) or "none yet"
    if step not in known:
        raise RunError(f"there is no checkpoint of step {step} in {storage.address}; steps: {steps}")
    fault = _damage(known[step])
    if fault:
        raise RunError(f"checkpoint {known[step]} is damaged: {fault}; choose another of steps {steps}")
    return known[step]


def set_aside(checkpoint: Checkpoint, reason: str) -> str:
    """Rename a checkpoint to `<name>.<reason>`, so that no list has it and nothing is lost; the new name."""
    taken = set(checkpoint.storage.names())
    aside, number = f"{checkpoint.name}.{reason}", 2
    while aside in taken:
        aside = f"{checkpoint.name}.{reason}-{number}"
        number += 1
    checkpoint.storage.move(checkpoint.name, aside)
    return aside


def _damage(checkpoint: Checkpoint, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with it. A fault of the storage is not damage: it passes, so that nothing is set aside for it."""
    try:
        verify_files(checkpoint, read_manifest(checkpoint), rank, world)
    except DamagedError as fault:
        return str(fault)
    except OSError as fault:
        raise OSError(f"checkpoint {checkpoint} cannot be read, and nothing was set aside: {fault}") from fault
    return None


def _agree_on_newest(storage: Storage, topology: Topology | None) -> int | None:
    """Rank 0's view of the folder, so that all ranks speak of one checkpoint."""
    step = max(list_checkpoints(storage), default=-1)
    if topology is not None:
        step = collectives.largest(step if topology.rank == 0 else -1, topology, "checkpoint.newest")
    return None if step < 0 else step


def _any_rank(flag: bool, topology: Topology | None, name: str) -> bool:
    return flag if topology is None else collectives.any_rank(flag, topology, name)
