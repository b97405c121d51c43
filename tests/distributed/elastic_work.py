"""Rank functions of test_elastic.py: train with faults, noting which samples every step took."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.fault_injection import Fault, injected
from distributed import trainer
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder
from distributed.train_step import TrainStep


def train(
    home: str, values: dict[str, Any], expert_parallel: int, attempt: int, fault: dict[str, Any] | None = None, die_at_the_end: bool = False
) -> str:
    """Train to the end, or into the fault; attempts after the first (0) resume. A line a forward, [step, ids], is noted below `home`."""
    os.environ["MOOTRON_HOME"] = home
    rank = int(os.environ["RANK"])
    recipe = check_recipe(values | {"expert_parallel": {"size": expert_parallel}}, "test")
    folder = RunFolder.named(recipe.name)
    if attempt == 0:
        folder.create(recipe)
    forward = TrainStep._forward
    notes = (Path(home) / f"ids-{recipe.name}-{attempt:02d}-{rank}.jsonl").open("w", buffering=1)

    def noting(self: TrainStep, step: int, ids: list[int], tokens_BT: torch.Tensor) -> Any:
        notes.write(json.dumps([step, ids]) + "\n")
        return forward(self, step, ids, tokens_BT)

    def finish(self: trainer.Trainer) -> None:
        if die_at_the_end and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        end(self)

    end = trainer.Trainer._finish
    patches = mock.patch.object(TrainStep, "_forward", noting), mock.patch.object(trainer.Trainer, "_finish", finish)
    with patches[0], patches[1], injected(Fault(**fault) if fault else None, rank), notes:
        return trainer.train(recipe, folder, resume=attempt > 0)
