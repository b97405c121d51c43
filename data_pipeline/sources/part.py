"""What one task reads: a few entries (files, ranges of a file, rows of a dataset)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.documents import digest_of
from data_pipeline.errors import DataError

# Small enough that two workers finish together on tens of megabytes, large enough that a task outweighs its start.
PART_BYTES = 4 << 20


@dataclass(frozen=True)
class Entry:
    """A file (or `start:stop` of it: bytes, row groups or rows) with the size and time it had when it was listed."""

    path: str
    key: str
    group: str
    size: int = 0
    modified_ns: int = 0
    start: int = 0
    stop: int = 0

    def open_path(self) -> Path:
        """The entry's path, after a check that the file is still the one that was listed.

        Raises:
            DataError: it is gone, changed, or not visible on this machine.
        """
        path = Path(self.path)
        try:
            status = path.stat()
        except OSError as fault:
            raise DataError(f"{path}: {fault.strerror}; sources must stay in place and be visible on every machine that prepares") from None
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified_ns):
            raise DataError(f"{path} changed while it was being prepared; run prepare again")
        return path


@dataclass(frozen=True)
class Part:
    """Entries read by one task; `held_out` where they are the publisher's held-out documents."""

    source: str
    entries: tuple[Entry, ...]
    held_out: bool = False

    @property
    def digest(self) -> str:
        """Names the part's content: paths, sizes, times and ranges."""
        return digest_of([[e.path, e.key, e.group, e.size, e.modified_ns, e.start, e.stop] for e in self.entries])


def file_entry(path: str | Path, key: str, group: str, start: int = 0, stop: int = 0) -> Entry:
    """An entry with the file's present size and time."""
    status = os.stat(path)
    return Entry(str(path), key, group, status.st_size, status.st_mtime_ns, start, stop)


def pack(source: str, entries: Iterable[Entry]) -> list[Part]:
    """Consecutive entries together until a part holds PART_BYTES."""
    parts: list[Part] = []
    pending: list[Entry] = []
    size = 0
    for entry in entries:
        if pending and size + entry.size > PART_BYTES:
            parts.append(Part(source, tuple(pending)))
            pending, size = [], 0
        pending.append(entry)
        size += entry.size
    if pending:
        parts.append(Part(source, tuple(pending)))
    return parts
