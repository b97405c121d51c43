"""Rank functions of test_trainer.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from data_pipeline.windows import Windows
from distributed import trainer
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder, data_folder
from distributed.train_step import TrainStep


def run(home: str, values: dict[str, Any], stop: int | None, resume: bool) -> str:
    """Train to the end, or until asked to stop after step `stop`."""
    os.environ["MOOTRON_HOME"] = home
    recipe = check_recipe(values, "test")
    folder = RunFolder.named(recipe.name)
    if not resume:
        folder.create(recipe)
    agree = trainer.Trainer._agree

    def asks_at(self: trainer.Trainer, loss: torch.Tensor) -> dict[str, float]:
        # The request itself is the real one: a file that rank 0 sees and all ranks agree on.
        if self.topology.rank == 0 and self.step + 1 == stop:
            self.run.stop_path.touch()
        return agree(self, loss)

    trainer.Trainer._agree = asks_at  # type: ignore[method-assign]
    try:
        return trainer.train(recipe, folder, resume)
    finally:
        trainer.Trainer._agree = agree  # type: ignore[method-assign]


def ids_of_steps(home: str, values: dict[str, Any], hosts: list[int]) -> list[tuple[int, list[int]]]:
    """Train as the rank of a host among `hosts` (ranks of each); the samples this rank's forwards saw at every step."""
    os.environ["MOOTRON_HOME"] = home
    place = [(local, size) for size in hosts for local in range(size)][int(os.environ["RANK"])]
    os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = map(str, place)
    recipe = check_recipe(values, "test")
    folder = RunFolder.named(recipe.name)
    folder.create(recipe)
    seen: list[tuple[int, list[int]]] = []
    windows = Windows(data_folder(recipe), "train")
    forward = TrainStep._forward

    def noting(self: TrainStep, step: int, ids: list[int], tokens_BT: torch.Tensor) -> Any:
        expected = torch.from_numpy(windows.read(ids)) if ids else tokens_BT
        assert torch.equal(tokens_BT, expected), f"step {step} ran other tokens than its ids say"
        seen.append((step, list(ids)))
        return forward(self, step, ids, tokens_BT)

    TrainStep._forward = noting  # type: ignore[method-assign]
    try:
        trainer.train(recipe, folder)
    finally:
        TrainStep._forward = forward  # type: ignore[method-assign]
    return seen


def losses(home: str, name: str) -> dict[int, float]:
    """Logged training losses of a run, by step."""
    lines = (Path(home) / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}
