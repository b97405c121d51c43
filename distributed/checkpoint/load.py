"""Loading into any layout: each rank reads, of each piece, what its own fragments have in common with it."""

from __future__ import annotations

from collections.abc import Container
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distributed.checkpoint.manifest import Manifest, rank_file
from distributed.checkpoint.reader import Reader
from distributed.checkpoint.storage import Checkpoint
from distributed.errors import RunError
from distributed.fragment import Fragment
from distributed.topology import Topology
from model.sharding import Box


def load(
    path: Checkpoint | Path, fragments: list[Fragment], boxes: dict[str, Box], buffers: dict[str, Tensor], topology: Topology
) -> Manifest:
    """Fill this rank's `fragments` and `buffers` from checkpoint `path`; no collective.

    The caller has verified the digests (`newest`, `chosen`) and calls `Engine.finish_load(meta.applied_steps)`
    afterwards. Random states return when the world has the size it had; else they are left as they are.

    Args:
        boxes: all parameters of the model, for the comparison of names and shapes.

    Raises:
        RunError: the checkpoint is of another model or lacks a state; the message names the first tensor that differs.
    """
    with closing(Reader(path)) as reader:
        check_same_model(path, reader.manifest, boxes, buffers)
        for fragment in fragments:
            reader.fill(fragment)
        for name, buffer in buffers.items():
            _fill_buffer(reader, name, buffer)
        if reader.manifest.world == topology.world:
            _restore_random_states(reader, rank_file(topology.rank, topology.world, reader.manifest.fence))
        return reader.manifest


def load_parameters(path: Checkpoint | Path, model: Any) -> Manifest:
    """Fill the parameters of `model` (which has `boxes()` and needs no optimizer) from the masters of a checkpoint, and its buffers.

    Raises:
        RunError: as for `load`.
    """
    boxes: dict[str, Box] = model.boxes()
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    with closing(Reader(path)) as reader, torch.no_grad():
        check_same_model(path, reader.manifest, boxes, dict(model.named_buffers()))
        for name, parameter in parameters.items():
            master = torch.empty(parameter.numel(), dtype=torch.promote_types(parameter.dtype, torch.float32))
            reader.fill(Fragment(name, boxes[name], 0, parameter.numel(), {"master": master}))
            parameter.copy_(master.view(parameter.shape))
        for name, buffer in model.named_buffers():
            _fill_buffer(reader, name, buffer)
        return reader.manifest


def check_same_model(path: Checkpoint | Path, manifest: Manifest, boxes: dict[str, Box], buffers: Container[str]) -> None:
    """Compare names and global shapes.

    Raises:
        RunError: naming the first tensor that differs.
    """
    saved = manifest.shapes()
    differs, mend = f"checkpoint {path} is of another model", "resume with the recipe of the checkpoint, or start a new run"
    for name, box in boxes.items():
        if name not in saved:
            raise RunError(f"{differs}: it has no '{name}'; {mend}")
        if saved[name] != box.global_shape:
            raise RunError(f"{differs}: '{name}' has shape {list(saved[name])} there and {list(box.global_shape)} here; {mend}")
    for name in [*saved, *manifest.buffers]:
        if name not in boxes and name not in buffers:
            raise RunError(f"{differs}: it has '{name}', which this model has not; {mend}")


def _fill_buffer(reader: Reader, name: str, buffer: Tensor) -> None:
    file = reader.manifest.buffers.get(name)
    saved = None if file is None else reader.tensor(file, f"buffer/{name}")
    if saved is None or saved.shape != buffer.shape:
        there = "not there" if saved is None else f"of shape {list(saved.shape)} there and {list(buffer.shape)} here"
        raise RunError(
            f"checkpoint {reader.checkpoint} is of another model: buffer '{name}' is {there}; resume with the recipe of the checkpoint"
        )
    buffer.copy_(saved)


def _restore_random_states(reader: Reader, file: str) -> None:
    on_host, on_device = reader.tensor(file, "random/cpu"), reader.tensor(file, "random/cuda")
    if on_host is not None:
        torch.set_rng_state(on_host)
    if on_device is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(on_device)
