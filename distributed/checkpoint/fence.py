"""The fencing number: how many times groups of this run have started. A writer with an older number is of a dead group.

A group that was cut off may live on, and its writer may be late. So its number is in the names of its files and marks, and
it is compared before a commit; the new group, which raised the number first, then removes what was not committed, so
that a commit between comparison and removal fails too. Raised by rank 0, by creating the next "fence-<number>".
"""

from __future__ import annotations

import re
import time

from distributed.checkpoint.folder import is_committed, step_folders
from distributed.checkpoint.storage import Storage

SHARED_SECONDS = 60.0
"""How long a network file system may show a folder as it was."""


def raise_fence(storage: Storage) -> int:
    """Take the next number, and clear what earlier groups left unfinished. One process calls it, before the group loads."""
    numbers = _numbers(storage)
    number = max(numbers, default=0) + 1
    while not storage.create(_name(number), b""):
        number += 1
    for older in numbers:
        storage.remove(_name(older))
    for name in storage.names():
        if name.startswith(".fence-"):  # of a start that was killed
            storage.remove(name)
    for name in step_folders(storage).values():
        if not is_committed(storage, name):
            storage.remove_folder(name)
    return number


def sees_fence(storage: Storage, number: int, seconds: float = SHARED_SECONDS) -> bool:
    """Whether this process sees what rank 0 wrote: ranks speak to each other through the storage. Waits `seconds` for a cache."""
    deadline = time.monotonic() + seconds
    while current_fence(storage) < number:
        if time.monotonic() > deadline:
            return False
        time.sleep(storage.poll_seconds)
    return True


def current_fence(storage: Storage) -> int:
    """The number of the newest group; 0 when none was raised."""
    return max(_numbers(storage), default=0)


def _numbers(storage: Storage) -> list[int]:
    return [int(match[1]) for name in storage.names() if (match := re.fullmatch(r"fence-(\d{8,})", name))]


def _name(number: int) -> str:
    return f"fence-{number:08d}"
