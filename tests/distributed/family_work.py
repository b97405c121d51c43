"""Rank functions of test_family.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed import checkpoint
from distributed.build import build_model
from distributed.engine import build_engine
from distributed.recipe_file import check_recipe
from distributed.topology import init_topology


def load_and_save(values: dict[str, Any], source: str, copy: str) -> None:
    """Load the newest checkpoint of folder `source` in this layout and save what was loaded in folder `copy`."""
    recipe = check_recipe(values, "test")
    plain = recipe.train.engine == "plain"
    groups = {"expert_parallel": recipe.expert_parallel.size, "table_parallel": recipe.table_parallel.size}
    topology = init_topology(**groups, device="cpu", timeout_seconds=60, use_deepspeed=False if plain else None)
    model = build_model(recipe, topology)
    engine = build_engine(model, recipe.train, topology)
    path = checkpoint.newest(Path(source), topology)
    assert path is not None
    buffers = dict(model.named_buffers())
    manifest = checkpoint.load(path, engine.fragments(), model.boxes(), buffers, topology)
    engine.finish_load(manifest.meta.applied_steps)
    checkpoint.save(Path(copy), manifest.step, engine.fragments(), buffers, manifest.meta, topology)
