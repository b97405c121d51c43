"""Steps of the sample order that a run leaves out, because training on them went wrong.

The order itself stays a pure function of its step; a run's step n takes the n-th step of the order that is not left out.
Kept in `skips.json` of the run folder, one entry a roll-back: {"steps": [...], "reason": ..., "rolled_back_to": ...}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.files import write_text
from distributed.errors import RunError
from distributed.run_folder import RunFolder


class Skips:
    """What was left out so far."""

    def __init__(self, run: RunFolder) -> None:
        self._path: Path = run.path / "skips.json"
        self._entries = self._read()

    @property
    def roll_backs(self) -> int:
        """How often the run went back."""
        return len(self._entries)

    def order_step(self, step: int) -> int:
        """Which step of the sample order the run's step `step` takes (both from 0)."""
        for skipped in self._steps():
            if skipped <= step:
                step += 1
        return step

    def add(self, first: int, last: int, reason: str, rolled_back_to: int, write: bool = True) -> None:
        """Leave out what the run's steps `first` to `last` took. All processes call it alike, one of them with `write`."""
        steps = [self.order_step(step) for step in range(first, last + 1)]
        self._entries.append({"steps": steps, "reason": reason, "rolled_back_to": rolled_back_to})
        if write:
            write_text(self._path, json.dumps(self._entries, indent=1))

    def _steps(self) -> list[int]:
        return sorted(step for entry in self._entries for step in entry["steps"])

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        try:
            entries: list[dict[str, Any]] = json.loads(self._path.read_text())
        except (OSError, json.JSONDecodeError) as fault:
            raise RunError(f"{self._path} cannot be read: {fault}; without it the run would take other samples: restore it") from None
        return entries
