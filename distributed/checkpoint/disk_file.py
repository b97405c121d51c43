"""Writing a large file past the page cache, where the file system can.

A buffered write copies everything once more and has the kernel write it back later: on two cores that took fifteen times the
processor time of a direct one, which is time taken from training. Direct writes need whole pages; the rest goes the usual way.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from distributed.checkpoint.storage import Chunk

PAGE = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


def write_flushed(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write a new file; it is on disk on return. When that fails nothing of it stays."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            for chunk in chunks:
                _write(handle, memoryview(chunk))
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write(handle: int, chunk: memoryview) -> None:
    whole = len(chunk) - len(chunk) % PAGE
    if whole and _on_a_page(chunk) and os.lseek(handle, 0, os.SEEK_CUR) % PAGE == 0:
        chunk = chunk[_write_direct(handle, chunk[:whole]) :]
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]


def _write_direct(handle: int, pages: memoryview) -> int:
    """How many bytes went past the page cache: all, or fewer where the file system cannot."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    done = 0
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | _DIRECT)
        while done < len(pages) and done % PAGE == 0:
            done += os.write(handle, pages[done:])
    except OSError as fault:
        if fault.errno != errno.EINVAL:
            raise
    finally:
        with suppress(OSError):
            fcntl.fcntl(handle, fcntl.F_SETFL, flags)
    return done


def _on_a_page(chunk: memoryview) -> bool:
    return bool(_DIRECT) and np.frombuffer(chunk, dtype=np.uint8).ctypes.data % PAGE == 0
