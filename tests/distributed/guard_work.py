"""Rank functions of test_guard.py."""

from __future__ import annotations

import os
from typing import Any

import torch

from distributed import trainer
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder
from distributed.skips import Skips
from distributed.train_step import TrainStep


def train_with_bad_samples(home: str, values: dict[str, Any], bad_steps: list[int]) -> dict[str, Any]:
    """Train while the samples of some steps of the order give a loss that is not finite; the order steps trained on."""
    os.environ["MOOTRON_HOME"] = home
    recipe = check_recipe(values, "test")
    folder = RunFolder.named(recipe.name)
    folder.create(recipe)
    seen: list[int] = []
    forward = TrainStep._forward

    def poisoned(self: TrainStep, step: int, ids: list[int], tokens_BT: torch.Tensor) -> Any:
        order_step = Skips(folder).order_step(step)
        if not seen or seen[-1] != order_step:
            seen.append(order_step)
        output, cross_entropy, balance = forward(self, step, ids, tokens_BT)
        return output, cross_entropy * (float("nan") if order_step in bad_steps else 1.0), balance

    TrainStep._forward = poisoned  # type: ignore[method-assign]
    try:
        return {"outcome": trainer.train(recipe, folder), "order_steps": seen}
    finally:
        TrainStep._forward = forward  # type: ignore[method-assign]
