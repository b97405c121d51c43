"""Writing files so that they survive a crash, and telling whether they did."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from distributed.checkpoint.manifest import DamagedError, FileRecord, Manifest


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileRecord:
    """Write `tensors` (on the host, contiguous) to `path` by way of a temporary name; they are on disk on return."""
    temporary = path.with_name(f".{path.name}")
    save_file(tensors, temporary)
    flush(temporary)
    record = record_of(temporary)
    os.replace(temporary, path)
    return record


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` by way of a temporary name, then flush file and folder: the rename is the commit."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def record_of(path: Path) -> FileRecord:
    """Size and digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)


def verify_files(path: Path, manifest: Manifest, rank: int = 0, world: int = 1) -> None:
    """Check this rank's share (every `world`-th) of the files of checkpoint folder `path`.

    Raises:
        DamagedError: a file is missing, has another size or another digest.
    """
    for name in sorted(manifest.files)[rank::world]:
        file, expected = path / name, manifest.files[name]
        if not file.is_file():
            raise DamagedError(f"{file}: missing")
        if file.stat().st_size != expected.size:
            raise DamagedError(f"{file}: {file.stat().st_size} bytes instead of {expected.size}")
        if record_of(file) != expected:
            raise DamagedError(f"{file}: its digest does not match")


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
