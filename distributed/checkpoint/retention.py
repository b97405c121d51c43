"""Which checkpoints to keep. One that is being read stays until its reader is done."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed.checkpoint.folder import list_checkpoints, step_folders
from distributed.checkpoint.manifest import MANIFEST
from distributed.checkpoint.storage import Checkpoint, Storage, as_storage

LEASE_SECONDS = 3600.0
"""A reader that was killed holds a checkpoint no longer than this."""


def retain(place: Storage | Path, keep_last: int, keep_every: int | None = None) -> list[int]:
    """Delete all but the last `keep_last` checkpoints and those of every `keep_every`-th step; the deleted steps.

    Half-written folders older than the newest committed checkpoint go too. One process calls it, after a commit.
    """
    storage = as_storage(place)
    committed = list(list_checkpoints(storage))
    kept = set(committed[-keep_last:]) | {step for step in committed if keep_every and step % keep_every == 0}
    gone = []
    for step, name in step_folders(storage).items():
        if step not in kept and committed and step < committed[-1] and not _is_read(storage, name):
            storage.remove(f"{name}/{MANIFEST}")  # first, so that an interrupted deletion leaves no whole-looking rest
            storage.remove_folder(name)
            gone.append(step)
    return gone


@contextmanager
def reading(checkpoint: Checkpoint) -> Iterator[None]:
    """Keep a checkpoint from deletion meanwhile; where nothing can be written nobody can delete either."""
    lease = checkpoint.file(f"reading-{uuid.uuid4().hex}.json")
    with suppress(OSError):
        checkpoint.storage.write(lease, [json.dumps({"time": time.time()}).encode()])
    try:
        yield
    finally:
        with suppress(OSError):
            checkpoint.storage.remove(lease)


def _is_read(storage: Storage, name: str) -> bool:
    for lease in storage.names(name):
        if lease.startswith("reading-"):
            with suppress(OSError, ValueError, KeyError):
                if time.time() - json.loads(storage.read(f"{name}/{lease}"))["time"] < LEASE_SECONDS:
                    return True
    return False
