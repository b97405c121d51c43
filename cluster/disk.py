"""What files take on disk, in words, and their end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder and its folders; links are not followed, and files that vanish meanwhile count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def size_words(n_bytes: float) -> str:
    """`1.21 GB`."""
    for unit, size in _UNITS:
        if n_bytes >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{n_bytes:.0f} bytes"


def delete(entry: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
