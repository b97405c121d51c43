"""Which checkpoints a run has and what they take, without loading torch where they lie in its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from cluster.disk import bytes_below, size_words
from distributed.run_folder import RunFolder

if TYPE_CHECKING:
    from distributed.checkpoint import Storage

_MANIFEST = "manifest.json"  # `distributed.checkpoint.manifest.MANIFEST`, which loads torch


@dataclass(frozen=True)
class StoredCheckpoint:
    """`whole`: it was written to its end."""

    step: int
    n_bytes: int
    whole: bool


def checkpoint_steps(run: RunFolder) -> list[int]:
    """Steps of the run's checkpoints, oldest first.

    Raises:
        RunError: `checkpoint.address` cannot be served.
    """
    if run.recipe_path.is_file() and run.recipe().checkpoint.address is not None:
        from distributed import checkpoint
        from distributed.persistence import storage_of

        return sorted(checkpoint.list_checkpoints(storage_of(run.recipe(), run)))
    return sorted(int(match[1]) for path in run.checkpoints.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name)))


def local_checkpoints(run: RunFolder) -> list[StoredCheckpoint]:
    """What lies in the run's folder, oldest first; one on its way is among them."""
    found = [(int(match[1]), path) for path in run.checkpoints.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return [StoredCheckpoint(step, bytes_below(path), (path / _MANIFEST).is_file()) for step, path in sorted(found)]


def stored_checkpoints(run: RunFolder) -> list[StoredCheckpoint]:
    """The run's checkpoints wherever they lie, oldest first.

    Raises:
        RunError: `checkpoint.address` cannot be served.
    """
    recipe = run.recipe()
    if recipe.checkpoint.address is None:
        return local_checkpoints(run)
    from distributed.checkpoint import list_checkpoints
    from distributed.persistence import storage_of

    storage = storage_of(recipe, run)
    sizes = {
        step: sum(_size(storage, found.file(name)) for name in storage.names(found.name))
        for step, found in list_checkpoints(storage).items()
    }
    return [StoredCheckpoint(step, n_bytes, whole=True) for step, n_bytes in sorted(sizes.items())]


def _size(storage: Storage, name: str) -> int:
    """Bytes of a file; 0 of one that a run at work deletes meanwhile."""
    try:
        return storage.size(name)
    except FileNotFoundError:
        return 0


def checkpoint_table(found: Sequence[StoredCheckpoint], keep_every: int | None) -> Table:
    """A row a checkpoint. `newest` is what resume, eval and generate take; `kept`: retention never deletes it."""
    newest = max((checkpoint.step for checkpoint in found if checkpoint.whole), default=None)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("checkpoint", "size"):
        table.add_column(name, justify="right")
    table.add_column("")
    for checkpoint in found:
        kept = f"kept (checkpoint.keep_every={keep_every})" if keep_every and checkpoint.step % keep_every == 0 else ""
        notes = ["newest" if checkpoint.step == newest else "", kept, "" if checkpoint.whole else "not whole: being written, or left so"]
        table.add_row(f"step {checkpoint.step}", size_words(checkpoint.n_bytes), ", ".join(filter(None, notes)))
    return table
