"""Where checkpoints lie: a folder, or an object store by its address. One small interface for both.

Names are relative, with slashes: "step-00000100/manifest.json". A file appears whole under its name or not at all, and
`create` is the one operation with a winner: of several callers exactly one gets the name. That is what a commit stands on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distributed.errors import RunError

Chunk = bytes | memoryview


class Storage(Protocol):
    """See `LocalStorage` (folders) and `ObjectStorage` (fsspec addresses). Any method may raise OSError."""

    @property
    def address(self) -> str:
        """What a message calls it."""
        ...

    @property
    def poll_seconds(self) -> float:
        """How long to wait between two looks for another rank's file."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """Names directly in `folder`, sorted; none when there is no such folder."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes `start:stop` of a file."""
        ...

    def read_into(self, name: str, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on; OSError when the file ends before."""
        ...

    def write(self, name: str, chunks: Iterable[Chunk]) -> None:
        """Write a file piece by piece, in place of an older one; it is on disk under its name on return, or not at all."""
        ...

    def create(self, name: str, content: bytes, last_check: Callable[[], None] = lambda: None) -> bool:
        """Write a file whose name is free, in a folder that exists; False when another was first.

        `last_check` is called when everything but the name is on disk, and may raise to leave it so.
        """
        ...

    def remove(self, name: str) -> None:
        """Delete a file, or a folder that is empty; nothing happens when it is not there or not empty."""
        ...

    def remove_folder(self, name: str) -> None:
        """Delete a folder with all that is in it."""
        ...

    def move(self, name: str, other: str) -> None:
        """Give a folder another name."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's place: the folder `name` of a storage."""

    storage: Storage
    name: str

    def __str__(self) -> str:
        return f"{self.storage.address}/{self.name}"

    def file(self, name: str) -> str:
        """The name of one of its files in the storage."""
        return f"{self.name}/{name}"

    @staticmethod
    def at(place: Checkpoint | Path) -> Checkpoint:
        """The checkpoint of a local folder, or what is one already."""
        return Checkpoint(as_storage(place.parent), place.name) if isinstance(place, Path) else place


def as_storage(place: Storage | Path) -> Storage:
    """The storage of a local folder, or what is one already."""
    from distributed.checkpoint.local_storage import LocalStorage

    return LocalStorage(place) if isinstance(place, Path) else place


def open_storage(address: str) -> Storage:
    """The storage at a path or an fsspec address: file:///data, memory://x, s3://bucket/prefix, gs://bucket/prefix.

    Raises:
        RunError: no such kind of address, or the package that serves it is not installed.
    """
    kind, separator, path = address.partition("://")
    if not separator or kind in ("file", "local"):
        folder = Path(path if separator else address)
        if not folder.is_absolute():
            raise RunError(f"checkpoint.address is '{address}', which is no absolute path; write file:///data/checkpoints")
        return as_storage(folder)
    from distributed.checkpoint.object_storage import open_objects

    return open_objects(address)
