"""Checkpoints in an object store by an fsspec address. There is no rename: an object appears when its upload ends.

`create` is exclusive where the backend takes a condition on the upload (S3, Google, memory); elsewhere it looks first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from distributed.checkpoint.storage import Chunk, Storage
from distributed.errors import RunError


class ObjectStorage:
    """See `distributed.checkpoint.storage.Storage`."""

    poll_seconds = 0.5

    def __init__(self, filesystem: Any, root: str, address: str) -> None:
        self._filesystem, self._root, self.address = filesystem, root.rstrip("/"), address.rstrip("/")
        upload = getattr(filesystem, "_pipe_file", filesystem.pipe_file)
        self._condition = {"mode": "create"} if "mode" in inspect.signature(upload).parameters else {}

    def names(self, folder: str = "") -> list[str]:
        self._filesystem.invalidate_cache()
        try:
            found = self._filesystem.ls(self._path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(entry).rstrip("/").rpartition("/")[2] for entry in found})

    def exists(self, name: str) -> bool:
        self._filesystem.invalidate_cache()
        return bool(self._filesystem.isfile(self._path(name)))

    def size(self, name: str) -> int:
        return int(self._filesystem.size(self._path(name)))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        return bytes(self._filesystem.cat_file(self._path(name), start=start, end=stop))

    def read_into(self, name: str, start: int, target: memoryview) -> None:
        content = self.read(name, start, start + len(target))
        if len(content) < len(target):
            raise OSError(f"{self.address}/{name} ends at byte {start + len(content)}, before {start + len(target)}")
        target[:] = content

    def write(self, name: str, chunks: Iterable[Chunk]) -> None:
        path = self._path(name)
        try:
            with self._opened(path) as file:
                for chunk in chunks:
                    file.write(chunk)
        except BaseException:
            with suppress(Exception):  # leaving the block may have uploaded half a file
                self._filesystem.rm_file(path)
            raise

    def create(self, name: str, content: bytes, last_check: Callable[[], None] = lambda: None) -> bool:
        if not self._condition and self.exists(name):
            return False
        last_check()
        try:
            self._filesystem.pipe_file(self._path(name), content, **self._condition)
        except FileExistsError:
            return False
        except OSError:  # some backends have no word of their own for a condition that does not hold
            if self._condition and self.exists(name):
                return False
            raise
        return True

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            if self.exists(name):
                self._filesystem.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.rm(self._path(name), recursive=True)

    def move(self, name: str, other: str) -> None:
        """Copy, then delete: the store does both on its side."""
        for file in self.names(name):
            self._filesystem.cp_file(self._path(f"{name}/{file}"), self._path(f"{other}/{file}"))
        self.remove_folder(name)

    def _opened(self, path: str) -> Any:
        try:
            return self._filesystem.open(path, "wb")
        except FileNotFoundError:  # a store that has true folders
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            return self._filesystem.open(path, "wb")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def open_objects(address: str) -> Storage:
    """The store at an fsspec address.

    Raises:
        RunError: as for `open_storage`.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    kind = address.partition("://")[0]
    try:
        filesystem, root = url_to_fs(address)
    except ImportError:
        package = str(known_implementations[kind]["class"]).partition(".")[0]
        raise RunError(f"checkpoint.address is '{address}', which needs a package: pip install {package}") from None
    except ValueError as fault:
        raise RunError(f"checkpoint.address is '{address}': {fault}; write file://, s3://, gs:// or another fsspec address") from None
    return ObjectStorage(filesystem, root, address)
