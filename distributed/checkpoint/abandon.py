"""Checkpoints of a stretch that a run went back over: kept aside, not resumed from."""

from __future__ import annotations

from pathlib import Path

from distributed.checkpoint.folder import list_checkpoints


def abandon_after(folder: Path, step: int) -> list[int]:
    """Rename the committed checkpoints past `step` to `<name>.abandoned`; their steps. One process calls it."""
    gone = [(number, path) for number, path in list_checkpoints(folder).items() if number > step]
    for _, path in gone:
        aside = path.with_name(f"{path.name}.abandoned")
        number = 2
        while aside.exists():
            aside = path.with_name(f"{path.name}.abandoned-{number}")
            number += 1
        path.rename(aside)
    return [number for number, _ in gone]
