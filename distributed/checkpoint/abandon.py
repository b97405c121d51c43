"""Checkpoints of a stretch that a run went back over: kept aside, not resumed from."""

from __future__ import annotations

from pathlib import Path

from distributed.checkpoint.folder import list_checkpoints, set_aside
from distributed.checkpoint.storage import Storage


def abandon_after(place: Storage | Path, step: int) -> list[int]:
    """Rename the committed checkpoints past `step` to `<name>.abandoned`, the newest first; their steps. One process calls it."""
    gone = {number: checkpoint for number, checkpoint in list_checkpoints(place).items() if number > step}
    for checkpoint in reversed(gone.values()):
        set_aside(checkpoint, "abandoned")
    return list(gone)
