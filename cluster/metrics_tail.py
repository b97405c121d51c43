"""New lines of a file of JSON lines (metrics.jsonl, events.jsonl), as they are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distributed.json_lines import whole_lines


class MetricsTail:
    """Reads from where the file ends now; follows it when a resumed trainer replaces it by a shorter one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode, self.offset = self._identity()

    def read(self) -> list[dict[str, Any]]:
        """Figures of the intervals since the last call; a line cut in half waits for its rest."""
        inode, size = self._identity()
        if inode != self.inode:
            # A file that takes the place of another holds what was shown already; the first one of a run does not.
            self.offset = size if self.inode else 0
            self.inode = inode
        if size <= self.offset:
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        return whole_lines(whole.splitlines())

    def _identity(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size
