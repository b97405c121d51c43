"""Run folders of their own, and a Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.ray_session import ray_session
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder

CODE_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MOOTRON_HOME."""
    monkeypatch.setenv("MOOTRON_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def recipe() -> Recipe:
    """The quickstart with the numbers that these tests speak of, without what costs an import of torch in every rank."""
    numbers = ["train.steps=200", "train.global_batch=16", "expert_parallel.size=2"]
    return load_recipe(CODE_ROOT / "configs" / "quickstart.yaml", [*numbers, "cluster.preflight=false"])


def with_cluster(recipe: Recipe, **fields: object) -> Recipe:
    """The recipe with other fields of `cluster`."""
    return recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update=fields)})


@pytest.fixture
def make_run(home: Path, recipe: Recipe) -> Callable[..., RunFolder]:
    """make_run(place, state=None, checkpoints=(), **figures): a run folder as a trainer would have left it."""

    def make(place: str, state: str | None = None, checkpoints: tuple[int, ...] = (), **figures: object) -> RunFolder:
        run = RunFolder.named(place)
        run.create(recipe.model_copy(update={"name": run.name}))
        for step in checkpoints:
            (run.checkpoints / f"step-{step:08d}").mkdir()
        if state is not None:
            run.write_state(state, **figures)
        return run

    return make


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A private Ray whose workers can import the targets in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{CODE_ROOT}{os.pathsep}{Path(__file__).resolve().parent}")
        with ray_session(cpus=2, gpus=0):
            yield
