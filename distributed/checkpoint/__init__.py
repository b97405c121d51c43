"""Checkpoints that know no layout: saved in one world, loaded into any other. The format is in `manifest.py`."""

from distributed.checkpoint.fence import raise_fence
from distributed.checkpoint.folder import checkpoint_path, chosen, list_checkpoints, newest
from distributed.checkpoint.load import load, load_parameters
from distributed.checkpoint.manifest import Manifest, Meta, read_manifest
from distributed.checkpoint.retention import retain
from distributed.checkpoint.save import save
from distributed.checkpoint.saver import Saver
from distributed.checkpoint.storage import Checkpoint, Storage, open_storage

__all__ = [
    "Checkpoint",
    "Manifest",
    "Meta",
    "Saver",
    "Storage",
    "checkpoint_path",
    "chosen",
    "list_checkpoints",
    "load",
    "load_parameters",
    "newest",
    "open_storage",
    "raise_fence",
    "read_manifest",
    "retain",
    "save",
]
