"""Named spans of time, told to whoever listens: `with span("experts"): ...`.

Nothing listens by default and a span then costs one attribute read. A trainer that wants to know where a step's time
went installs a recorder. It is one a process and not one a thread: autograd runs backward spans on its own threads.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Recorder(Protocol):
    """Told of every span; spans nest, and a span is left on the thread that entered it."""

    def enter(self, name: str) -> None: ...

    def leave(self, name: str) -> None: ...


_recorder: Recorder | None = None


def install(recorder: Recorder) -> None:
    """Make `recorder` hear every span that begins from now on, in place of the one before."""
    global _recorder
    _recorder = recorder


def uninstall() -> None:
    """Stop listening; a span already begun is still left."""
    global _recorder
    _recorder = None


class span:
    """Context manager that names what runs inside it; left also when the inside raises."""

    __slots__ = ("_heard_by", "_name")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        # Kept, so that a recorder installed or removed half way never sees one end of a span.
        self._heard_by = _recorder
        if self._heard_by is not None:
            self._heard_by.enter(self._name)

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        if self._heard_by is not None:
            self._heard_by.leave(self._name)
