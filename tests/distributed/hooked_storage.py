"""Storages that a test can hold up or break: a wrapper around any, and an object store in this process."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem

from distributed.checkpoint.storage import Chunk, Storage


class HookedStorage:
    """`inner`, with `before(operation, name)` called first; it may wait or raise. Writes break after their first piece when asked."""

    def __init__(self, inner: Storage, before: Callable[[str, str], None] = lambda operation, name: None) -> None:
        self.inner, self.before = inner, before
        self.full_for: Callable[[str], bool] = lambda name: False

    def write(self, name: str, chunks: Iterable[Chunk]) -> None:
        self.before("write", name)
        self.inner.write(name, self._until_full(name, chunks))

    def create(self, name: str, content: bytes, last_check: Callable[[], None] = lambda: None) -> bool:
        self.before("create", name)
        return self.inner.create(name, content, last_check)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.inner, attribute)

    def _until_full(self, name: str, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        for number, chunk in enumerate(chunks):
            if self.full_for(name) and (number > 0 or name.endswith(".json")):
                raise OSError(errno.ENOSPC, "No space left on device")
            yield chunk


class Gate:
    """Holds the writer at one operation until it is opened."""

    def __init__(self, operation: str, part_of_name: str) -> None:
        self._operation, self._part = operation, part_of_name
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, operation: str, name: str) -> None:
        if operation == self._operation and self._part in name:
            self.reached.set()
            assert self.opened.wait(60), "nobody opened the gate"


class S3LikeFileSystem(MemoryFileSystem):
    """No rename, no true folders, uploads that fail when told; every upload that began is counted."""

    protocol = "s3like"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failing: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(path.replace("s3like://", "memory://"))

    def mv(self, *paths: Any, **options: Any) -> None:
        raise NotImplementedError("an object store cannot rename")

    rename = move = mv

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb" and any(part in path for part in self.failing):
            raise ConnectionError("503 Slow Down")
        return super()._open(path, mode, **options)
