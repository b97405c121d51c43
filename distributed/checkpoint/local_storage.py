"""Checkpoints in a folder, local or shared over hosts: write beside, flush, rename."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from distributed.checkpoint.disk_file import write_flushed
from distributed.checkpoint.storage import Chunk

_REMOVALS = 20


@dataclass(frozen=True)
class LocalStorage:
    """See `distributed.checkpoint.storage.Storage`."""

    root: Path
    poll_seconds: float = 0.02

    @property
    def address(self) -> str:
        return str(self.root)

    def names(self, folder: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        with (self.root / name).open("rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)

    def read_into(self, name: str, start: int, target: memoryview) -> None:
        with (self.root / name).open("rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(target):
                got = file.readinto(target[done:])
                if not got:
                    raise OSError(f"{self.root / name} ends at byte {start + done}, before {start + len(target)}")
                done += got

    def write(self, name: str, chunks: Iterable[Chunk]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._write_beside(path, chunks)
        os.replace(temporary, path)
        flush(path.parent)

    def create(self, name: str, content: bytes, last_check: Callable[[], None] = lambda: None) -> bool:
        """A link and not a rename: a rename would take the name from whoever was first."""
        path = self.root / name
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self._write_beside(path, [content])
        try:
            last_check()
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)
        flush(path.parent.parent)
        return True

    def remove(self, name: str) -> None:
        path = self.root / name
        try:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        except OSError:
            if path.exists() and not path.is_dir():
                raise

    def remove_folder(self, name: str) -> None:
        for attempt in range(_REMOVALS):
            try:
                shutil.rmtree(self.root / name)
                return
            except OSError:  # a late writer of a dead group may add to it, or tidy it away itself, at the same time
                if not (self.root / name).is_dir():
                    return
                if attempt == _REMOVALS - 1:
                    raise

    def move(self, name: str, other: str) -> None:
        (self.root / name).rename(self.root / other)
        flush(self.root)

    def _write_beside(self, path: Path, chunks: Iterable[Chunk]) -> Path:
        """A flushed file next to `path`; nothing stays when writing fails."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        write_flushed(temporary, chunks)
        return temporary


def flush(folder: Path) -> None:
    """Force the entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
