"""Saving and waiting for it: every rank writes what it owns, rank 0 commits. No gather, and every range is written once.

12 bytes a parameter for AdamW (fp32 master and two moments); bf16 weights are not stored, they follow from the masters.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from distributed.checkpoint.folder import step_name
from distributed.checkpoint.manifest import Meta
from distributed.checkpoint.saver import Saver
from distributed.checkpoint.storage import Checkpoint, Storage, as_storage
from distributed.fragment import Fragment
from distributed.topology import Topology


def save(
    place: Storage | Path, step: int, fragments: list[Fragment], buffers: dict[str, Tensor], meta: Meta, topology: Topology
) -> Checkpoint:
    """Write checkpoint `step` and return it when it is whole on disk. All ranks call it; see `Saver.save`.

    Raises:
        RunError: a rank could not write, on all ranks.
    """
    storage = as_storage(place)
    saver = Saver(storage, topology, asynchronous=False, report=lambda message: None)
    saver.save(step, fragments, buffers, meta)
    saver.close()
    return Checkpoint(storage, step_name(step))
