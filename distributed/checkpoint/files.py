"""Digests of files, and whether a checkpoint's files are what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash

from distributed.checkpoint.manifest import DamagedError, FileRecord, Manifest
from distributed.checkpoint.snapshot import CHUNK_BYTES
from distributed.checkpoint.storage import Checkpoint, Chunk, Storage


class Digest:
    """Size and digest of what passes through."""

    def __init__(self, kind: str = "xxh3-128") -> None:
        self._kind, self._size = kind, 0
        self._state: Any = hashlib.sha256() if kind == "sha256" else xxhash.xxh3_128()

    def passing(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The same chunks, counted."""
        for chunk in chunks:
            self._state.update(chunk)
            self._size += len(chunk)
            yield chunk

    @property
    def record(self) -> FileRecord:
        """Of everything so far."""
        return FileRecord(size=self._size, digest=f"{self._kind}:{self._state.hexdigest()}")


def write_digested(storage: Storage, name: str, chunks: Iterable[Chunk]) -> FileRecord:
    """Write a file and digest it on the way."""
    digest = Digest()
    storage.write(name, digest.passing(chunks))
    return digest.record


def verify_files(checkpoint: Checkpoint, manifest: Manifest, rank: int = 0, world: int = 1) -> None:
    """Check this rank's share (every `world`-th) of a checkpoint's files.

    Raises:
        DamagedError: a file is missing, has another size or another digest.
    """
    for name in sorted(manifest.files)[rank::world]:
        expected = manifest.files[name]
        try:
            found = checkpoint.storage.size(checkpoint.file(name))
            if found != expected.size:
                raise DamagedError(f"{checkpoint}/{name}: {found} bytes instead of {expected.size}")
            if _record_of(checkpoint, name, expected) != expected:
                raise DamagedError(f"{checkpoint}/{name}: its digest does not match")
        except FileNotFoundError:
            raise DamagedError(f"{checkpoint}/{name}: missing") from None


def _record_of(checkpoint: Checkpoint, name: str, expected: FileRecord) -> FileRecord:
    digest = Digest(expected.digest.partition(":")[0])
    for start in range(0, expected.size, CHUNK_BYTES):
        content = checkpoint.storage.read(checkpoint.file(name), start, min(start + CHUNK_BYTES, expected.size))
        list(digest.passing([content]))
    return digest.record
