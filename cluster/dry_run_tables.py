"""What a dry run tells: what the recipe says of itself, and what its first steps took."""

from __future__ import annotations

import math

from rich.table import Table

from cluster.checkpoints import checkpoint_steps
from cluster.disk import bytes_below, size_words
from cluster.errors import ClusterError
from distributed.build import choose_dtype
from distributed.json_lines import read_lines
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.state_memory import state_bytes
from model.accounting import macs_per_token, parameters


def expected(recipe: Recipe, trial: Recipe, workers: int) -> Table:
    """Sizes and costs worked out from the recipe, and the state as `trial` lays it over its workers."""
    import torch

    from cluster.sizing import local_gpus

    counts, length = parameters(recipe.model), recipe.data.seq_len
    dtype = choose_dtype(recipe.train.precision, torch.device("cuda" if local_gpus() else "cpu"))
    state = state_bytes(trial, workers, dtype)
    tokens = recipe.train.steps * recipe.train.global_batch * length
    table = Table(title=f"{recipe.name}: what the recipe says", show_header=False)
    table.add_row("parameters", f"{counts.stored:,} stored, {counts.active:,} met by a token over {recipe.model.depth.n_visits} visits")
    table.add_row("forward", f"{macs_per_token(recipe.model, length) / 1e6:,.1f} M multiply-accumulates a token")
    table.add_row("run", f"{recipe.train.steps:,} steps of {recipe.train.global_batch} x {length} tokens: {tokens / 1e9:,.2f} B tokens")
    table.add_row(
        f"state a rank, {workers} workers",
        f"{size_words(state.total)}: weights {size_words(state.weights)}, gradients {size_words(state.gradients)}, "
        f"masters {size_words(state.masters)}, moments {size_words(state.moments)}; activations not counted",
    )
    return table


def measured(recipe: Recipe, run: RunFolder) -> Table:
    """What the first steps took, and the whole run at their speed.

    Raises:
        ClusterError: the model in the checkpoint is not the one that was worked out.
    """
    lines = [line for line in read_lines(run.metrics_path) if "loss" in line]
    step = checkpoint_steps(run)[-1]
    check_counted(recipe, run, step)
    memory = max(max(line["host_bytes_max"], line["device_bytes_max"]) for line in lines)
    speed = lines[-1]["tokens_per_second"]
    days = recipe.train.steps * recipe.train.global_batch * recipe.data.seq_len / speed / 86400
    losses = ["skipped" if line["loss"] is None else f"{line['loss']:.3f}" for line in lines]
    saved = bytes_below(run.checkpoints)
    table = Table(title=f"{recipe.name}: what its first steps took", show_header=False)
    table.add_row("loss, nats a token", ", ".join(losses))
    table.add_row("peak memory of a rank", size_words(memory))
    table.add_row("checkpoint", f"step {step}: {size_words(saved)}")
    table.add_row("speed", f"{speed:,.0f} tokens/s, {lines[-1]['step_seconds']:.1f} s a step; the whole run here: {days:,.1f} days")
    if recipe.model.depth.sample is not None:
        table.add_row("repeats", f"{recipe.model.depth.sample.max} in every step: the most that the recipe draws")
    return table


def check_counted(recipe: Recipe, run: RunFolder, step: int) -> None:
    """The checkpoint at `step` holds as many parameters as the configuration says.

    Raises:
        ClusterError: it does not.
    """
    from distributed.checkpoint import checkpoint_path, read_manifest

    manifest = read_manifest(checkpoint_path(run.checkpoints, step))
    saved, stored = sum(math.prod(shape) for shape in manifest.shapes().values()), parameters(recipe.model).stored
    if saved != stored:
        raise ClusterError(f"the checkpoint has {saved:,} parameters where the configuration says {stored:,}; this is a fault of ours")
