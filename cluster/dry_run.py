"""A recipe tried before its corpus and its days are spent: the model at full size, its first steps on small data, what it takes.

The run is the recipe's but for what makes it long: Python source of this machine in the recipe's own windows and kind of
tokenizer, a few steps of one micro-batch a worker (two where a step begins with a second forward), no warm-up, a validation of a
few windows and one checkpoint. A depth that is drawn is tried at its greatest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from cluster.disk import bytes_below, delete, size_words
from cluster.dry_run_tables import expected, measured
from cluster.exit_codes import DONE, FAILED
from cluster.new_run import NewRun, clear
from cluster.run_lock import RunLock
from cluster.sizing import plan_run
from data_pipeline.config import DataConfig
from data_pipeline.documents import digest_of
from data_pipeline.manifest import content_fields
from data_pipeline.source_config import SourceConfig
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder, data_folder

CORPUS_MEGABYTES = 8


@dataclass(frozen=True)
class DryRun:
    """The words after `dry-run`, the steps to make, and whether the run's folder is kept."""

    words: list[str]
    steps: int
    keep: bool = False

    def start(self, console: Console) -> int:
        """Print what the recipe is, make its first steps, print what they took; returns the exit code."""
        recipe = NewRun(self.words).recipe()
        small = NewRun([*self.words, *shortened(recipe, self.steps, plan_run(recipe).workers)])
        trial, plan = small.plan()
        console.print(expected(recipe, trial, plan.workers), highlight=False)
        with RunLock(RunFolder.named(trial.name)) as lock:
            clear(lock.run)  # what a trial left that was killed
            code = FAILED
            try:
                code = small.begin(trial, plan, lock, console)
                if code == DONE:
                    console.print(measured(recipe, lock.run), highlight=False)
                return code
            finally:
                if not self.keep:
                    leave(lock.run, console, failed=code == FAILED)
                data = data_folder(trial)
                if data.exists():
                    console.print(f"data set {data} ({size_words(bytes_below(data))}) stays for other dry runs", soft_wrap=True)


def leave(run: RunFolder, console: Console, failed: bool) -> None:
    """Delete a trial's folder; of one that failed its logs stay, and it is said where."""
    logs = run.logs if failed and run.logs.is_dir() and any(run.logs.iterdir()) else None
    for entry in run.path.iterdir():
        if entry != logs:
            delete(entry)
    if logs is None:
        run.path.rmdir()
    else:
        console.print(f"logs of the failed steps: {logs}", highlight=False, soft_wrap=True)


def shortened(recipe: Recipe, steps: int, workers: int) -> list[str]:
    """The fields of `recipe` that a dry run changes, as overrides."""
    changes: dict[str, Any] = {
        "name": f"dry-run-{recipe.name}",
        "data": small_data(recipe.data).model_dump(mode="json"),
        "train.steps": steps,
        "train.global_batch": workers * recipe.train.micro_batch * (2 if recipe.model.has_step_balance else 1),
        "train.schedule.warmup_steps": 0,
        "router.replay": "off",
        "validation.every": steps,
        "validation.windows": workers,
        "validation.batch": 1,
        "checkpoint.every": steps,
        "checkpoint.asynchronous": False,
        "checkpoint.address": None,
        "logging.every": 1,
        "logging.heat_maps_every": steps,
    }
    if recipe.model.depth.sample is not None:
        changes |= {"model.depth.repeats": recipe.model.depth.sample.max, "model.depth.sample": None}
    return [f"{field}={json.dumps(value)}" for field, value in changes.items()]


def small_data(data: DataConfig) -> DataConfig:
    """Python source of this machine, cut as `data` cuts its own; sets of other content lie in other folders."""
    changes = {
        "sources": [SourceConfig(name="python", kind="installed_python", max_megabytes=CORPUS_MEGABYTES)],
        "tokenizer": data.tokenizer.model_copy(update={"train_megabytes": CORPUS_MEGABYTES / 2}),
        "held_out_fraction": 0.05,
    }
    small = data.model_copy(update=changes)
    return small.model_copy(update={"folder": f"corpora/dry_run_{digest_of(content_fields(small))[:12]}"})
