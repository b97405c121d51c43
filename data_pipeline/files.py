"""Files that are whole or absent: written beside, flushed, then renamed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextmanager
def written_beside(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when the block ends without an error; others may read it unless `mode` says no."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a small text file."""
    with written_beside(path, mode) as file:
        file.write(text.encode())


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; empty where there is no such file, or it is damaged or holds another thing."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as .npz; read them with `allow_pickle=False`."""
    with written_beside(path) as file:
        np.savez(file, **arrays)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a finished file; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (made if missing); a second process waits. Released when the holder dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
