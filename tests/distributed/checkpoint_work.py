"""What ranks run for test_checkpoint.py: save in one layout, load in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from engine_work import one_step, start, state, train_config
from layouts_work import build
from small_model import SmallModel

from distributed import checkpoint
from distributed.checkpoint import Meta
from distributed.engine import Engine, build_engine
from distributed.topology import Topology, init_topology


def begin(expert_parallel: int, n_experts: int = 0, table_parallel: int = 1, **train: Any) -> tuple[Engine, Topology, Any]:
    """As `start`, with a number of experts; with none of them the model with tables."""
    topology = init_topology(expert_parallel, table_parallel=table_parallel, device="cpu", timeout_seconds=60)
    model = SmallModel(topology, n_experts) if n_experts else build("tables", topology)
    return build_engine(model, train_config(**train), topology), topology, model


def train_and_save(folder: str, expert_parallel: int, steps: int = 3, n_experts: int = 3, **train: Any) -> None:
    """Train `steps` steps and save."""
    engine, topology, _ = begin(expert_parallel, n_experts, **train)
    for step in range(steps):
        one_step(engine, topology, step, 1, 1e-2, torch.float32)
    meta = Meta(applied_steps=engine.applied_steps, tokens=steps * 12)
    checkpoint.save(Path(folder), steps, engine.fragments(), {"running_mean": torch.arange(4.0)}, meta, topology)


def draw_and_save(folder: str, **layout: Any) -> None:
    """Save masters and moments of random values."""
    engine, topology, _ = begin(**layout)
    for fragment in engine.fragments():
        for view in fragment.tensors.values():
            view.uniform_()
    checkpoint.save(Path(folder), 3, engine.fragments(), {"running_mean": torch.arange(4.0)}, Meta(applied_steps=3, tokens=9), topology)


def load_and_save(source: str, copy: str, **layout: Any) -> dict[str, Any]:
    """Load the newest checkpoint into a fresh engine and save what is there; the parameters and the counters."""
    engine, topology, model = begin(**layout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    path = checkpoint.newest(Path(source), topology)
    assert path is not None
    buffers = {"running_mean": torch.zeros(4)}
    manifest = checkpoint.load(path, engine.fragments(), model.boxes(), buffers, topology)
    engine.finish_load(manifest.meta.applied_steps)
    checkpoint.save(Path(copy), manifest.step, engine.fragments(), buffers, manifest.meta, topology)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"weights": weights, "boxes": model.boxes(), "applied": engine.applied_steps}


def resume_and_train(folder: str | None, first: int, last: int, expert_parallel: int, **train: Any) -> list[dict[str, Any]]:
    """Steps `first` to `last`, from the newest checkpoint of `folder` if one is given; this rank's state afterwards."""
    engine, topology, model = start(expert_parallel, **train)
    if folder is not None:
        path = checkpoint.newest(Path(folder), topology)
        assert path is not None
        manifest = checkpoint.load(path, engine.fragments(), model.boxes(), {"running_mean": torch.zeros(4)}, topology)
        engine.finish_load(manifest.meta.applied_steps)
    for step in range(first, last):
        one_step(engine, topology, step, 1, 1e-2, torch.float32)
    return state(engine)


def newest_of_damaged(folder: str) -> tuple[str | None, list[str]]:
    """What all ranks take for the newest checkpoint, and what each says."""
    _, topology, _ = start(1)
    said: list[str] = []
    path = checkpoint.newest(Path(folder), topology, said.append)
    return (path.name if path else None), said


def save_where_impossible(folder: str) -> str:
    """The message of a save into a folder that is a file on rank 1's side only."""
    engine, topology, _ = start(1)
    place = Path(folder) if topology.rank == 0 else Path(folder) / "a_file"
    if topology.rank == 1:
        place.write_text("in the way")
    try:
        checkpoint.save(place, 1, engine.fragments(), {}, Meta(applied_steps=0, tokens=0), topology)
    except Exception as fault:
        return f"{type(fault).__name__}: {fault}"
    return "saved"
