"""The folder of a run's checkpoints: which there are, the newest whole one, which to keep."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist

from distributed import collectives
from distributed.checkpoint.files import verify_files
from distributed.checkpoint.manifest import MANIFEST, DamagedError, read_manifest
from distributed.errors import RunError
from distributed.topology import Topology


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where checkpoint `step` lies."""
    return folder / f"step-{step:08d}"


def is_committed(path: Path) -> bool:
    """Whether a checkpoint was written to its end (it may be damaged since)."""
    return (path / MANIFEST).is_file()


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Committed checkpoints by step, oldest first. Half-written and damaged ones are not among them."""
    return {step: path for step, path in _step_folders(folder).items() if is_committed(path)}


def newest(folder: Path, topology: Topology | None = None, report: Callable[[str], None] = print) -> Path | None:
    """The newest whole checkpoint, its digests verified; None when there is none.

    A damaged one is renamed aside with a message, and the one before it is tried. With a topology all ranks call it
    together and share the reading.

    Args:
        report: takes the messages, on the rank that has something to say.
    """
    rank, world = (topology.rank, topology.world) if topology else (0, 1)
    while True:
        step = _agree_on_newest(folder, topology)
        if step is None:
            return None
        path = checkpoint_path(folder, step)
        fault = _damage(path, rank, world)
        if fault:
            report(f"checkpoint {path.name} is damaged: {fault}")
        if not _any_rank(fault is not None, topology, "checkpoint.verified"):
            return path
        if rank == 0:
            report(f"set aside as {_set_aside(path).name}; trying the one before it")
        _any_rank(False, topology, "checkpoint.set_aside")  # nobody lists the folder before the rename


def chosen(folder: Path, step: int) -> Path:
    """Checkpoint `step`, its digests verified.

    Raises:
        RunError: it is not there (the message lists those that are), or damaged.
    """
    known = list_checkpoints(folder)
    if step not in known:
        raise RunError(f"there is no checkpoint of step {step} in {folder}; steps: {', '.join(map(str, known)) or 'none yet'}")
    fault = _damage(known[step])
    if fault:
        raise RunError(f"checkpoint {known[step]} is damaged: {fault}; choose another of steps {', '.join(map(str, known))}")
    return known[step]


def retain(folder: Path, keep_last: int, keep_every: int | None = None) -> list[int]:
    """Delete all but the last `keep_last` checkpoints and those of every `keep_every`-th step; the deleted steps.

    Half-written folders older than the newest whole checkpoint go too. One process calls it, after a commit.
    """
    committed = list(list_checkpoints(folder))
    kept = set(committed[-keep_last:]) | {step for step in committed if keep_every and step % keep_every == 0}
    gone = []
    for step, path in _step_folders(folder).items():
        if step not in kept and committed and step < committed[-1]:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that an interrupted deletion leaves no whole-looking rest
            shutil.rmtree(path)
            gone.append(step)
    return gone


def _step_folders(folder: Path) -> dict[int, Path]:
    found = {}
    for path in folder.glob("step-*"):
        match = re.fullmatch(r"step-(\d{8,})", path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _damage(path: Path, rank: int = 0, world: int = 1) -> str | None:
    try:
        verify_files(path, read_manifest(path), rank, world)
    except DamagedError as fault:
        return str(fault)
    return None


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged")
    number = 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.damaged-{number}")
        number += 1
    return path.rename(aside)


def _agree_on_newest(folder: Path, topology: Topology | None) -> int | None:
    """Rank 0's view of the folder, so that all ranks speak of one checkpoint."""
    step = max(list_checkpoints(folder), default=-1)
    if topology is not None and topology.world_group is not None:
        vote = torch.tensor([step if topology.rank == 0 else -1], device=topology.device)
        step = int(collectives.all_reduce("checkpoint.newest", vote, topology.world_group, dist.ReduceOp.MAX).item())
    return None if step < 0 else step


def _any_rank(flag: bool, topology: Topology | None, name: str) -> bool:
    return flag if topology is None else collectives.any_rank(flag, topology, name)
