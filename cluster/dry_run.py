"""A recipe tried before its corpus and its days are spent: the model at full size, its first steps on small data, what it takes.

The run is the recipe's but for what makes it long: Python source of this machine in the recipe's own windows and kind of
tokenizer, a few steps of one micro-batch a worker, no warm-up, a validation of a few windows and one checkpoint.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.checkpoints import checkpoint_steps
from cluster.errors import ClusterError
from cluster.new_run import NewRun
from cluster.sizing import plan_run
from distributed.build import choose_dtype
from distributed.json_lines import read_lines
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.state_memory import state_bytes
from model.accounting import macs_per_token, parameters

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
        workers = plan_run(recipe).workers
        small = NewRun([*self.words, *shortened(recipe, self.steps, workers)])
        console.print(expected(recipe, workers), highlight=False)
        code = small.start(console)
        if code == 0:
            run = RunFolder.named(small.recipe().name)
            console.print(measured(recipe, run), highlight=False)
            if not self.keep:
                shutil.rmtree(run.path)
        return code


def shortened(recipe: Recipe, steps: int, workers: int) -> list[str]:
    """The fields of `recipe` that a dry run changes, as overrides."""
    tokenizer = recipe.data.tokenizer
    changes: dict[str, Any] = {
        "name": f"dry-run-{recipe.name}",
        "data.folder": f"corpora/dry_run_{tokenizer.kind}_{tokenizer.vocab_size}_{recipe.data.seq_len}",
        "data.sources": [{"name": "python", "kind": "installed_python", "max_megabytes": CORPUS_MEGABYTES}],
        "data.tokenizer.train_megabytes": CORPUS_MEGABYTES / 2,
        "data.held_out_fraction": 0.05,
        "train.steps": steps,
        "train.global_batch": workers * recipe.train.micro_batch,
        "train.schedule.warmup_steps": 0,
        "validation.every": steps,
        "validation.windows": workers,
        "validation.batch": 1,
        "checkpoint.every": steps,
        "checkpoint.asynchronous": False,
        "checkpoint.address": None,
        "logging.every": 1,
        "logging.heat_maps_every": steps,
    }
    return [f"{field}={json.dumps(value)}" for field, value in changes.items()]


def expected(recipe: Recipe, workers: int) -> Table:
    """Sizes and costs worked out from the recipe."""
    import torch

    from cluster.sizing import local_gpus

    counts, length = parameters(recipe.model), recipe.data.seq_len
    dtype = choose_dtype(recipe.train.precision, torch.device("cuda" if local_gpus() else "cpu"))
    state = state_bytes(recipe, workers, dtype)
    tokens = recipe.train.steps * recipe.train.global_batch * length
    table = Table(title=f"{recipe.name}: what the recipe says", show_header=False)
    table.add_row("parameters", f"{counts.stored:,} stored, {counts.active:,} met by a token over {recipe.model.depth.n_visits} visits")
    table.add_row("forward", f"{macs_per_token(recipe.model, length) / 1e6:,.1f} M multiply-accumulates a token")
    table.add_row("run", f"{recipe.train.steps:,} steps of {recipe.train.global_batch} x {length} tokens: {tokens / 1e9:,.2f} B tokens")
    table.add_row(
        f"state a rank, {workers} workers",
        f"{_gb(state.total)}: weights {_gb(state.weights)}, gradients {_gb(state.gradients)}, "
        f"masters {_gb(state.masters)}, moments {_gb(state.moments)}; activations not counted",
    )
    return table


def measured(recipe: Recipe, run: RunFolder) -> Table:
    """What the first steps took, and the whole run at their speed.

    Raises:
        ClusterError: the model in the checkpoint is not the one that was worked out.
    """
    lines = [line for line in read_lines(run.metrics_path) if "loss" in line]
    summary = json.loads(run.summary_path.read_text())
    stored = parameters(recipe.model).stored
    if summary["parameters"] != stored:
        raise ClusterError(
            f"the model has {summary['parameters']:,} parameters where its configuration says {stored:,}; this is a fault of ours"
        )
    memory = max(max(line["host_bytes_max"], line["device_bytes_max"]) for line in lines)
    speed = lines[-1]["tokens_per_second"]
    days = recipe.train.steps * recipe.train.global_batch * recipe.data.seq_len / speed / 86400
    table = Table(title=f"{recipe.name}: what its first steps took", show_header=False)
    table.add_row("loss, nats a token", ", ".join(f"{line['loss']:.3f}" for line in lines))
    table.add_row("peak memory of a rank", _gb(memory))
    table.add_row(
        "checkpoint", f"step {checkpoint_steps(run)[-1]}: {_gb(sum(f.stat().st_size for f in run.checkpoints.rglob('*') if f.is_file()))}"
    )
    table.add_row("speed", f"{speed:,.0f} tokens/s, {lines[-1]['step_seconds']:.1f} s a step; the whole run here: {days:,.1f} days")
    return table


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
