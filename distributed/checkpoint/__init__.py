"""Checkpoints that know no layout: saved in one world, loaded into any other. The format is in `manifest.py`."""

from distributed.checkpoint.folder import checkpoint_path, chosen, list_checkpoints, newest, retain
from distributed.checkpoint.load import load, load_parameters
from distributed.checkpoint.manifest import Manifest, Meta, read_manifest
from distributed.checkpoint.save import save

__all__ = [
    "Manifest",
    "Meta",
    "checkpoint_path",
    "chosen",
    "list_checkpoints",
    "load",
    "load_parameters",
    "newest",
    "read_manifest",
    "retain",
    "save",
]
