"""What rank 0 writes while a run goes on: metrics.jsonl, TensorBoard, state.json and the goodput ledger.

A start after a checkpoint first takes back what will be done again, so that no file says two things of one step.

Shape suffixes: V visits with routed experts, E experts.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from torch import Tensor

from data_pipeline.files import write_text
from distributed.clock import PARTS
from distributed.figures import Interval, finite, perplexity
from distributed.goodput import Event, Ledger, account
from distributed.heat_map import heat_map
from distributed.json_lines import read_lines
from distributed.load import relative_load
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.tensorboard import Board

LEGEND = (
    "A picture a routed layer: a row is a visit (first on top), a column an expert. Colour is routes over the even share, from a quarter "
    "(dark blue) over even (green) to four times (yellow), logarithmic; red experts got no route since the last picture."
)


class RunWriter:
    """Rank 0's files: metrics.jsonl, TensorBoard, state.json, goodput.jsonl."""

    def __init__(self, run: RunFolder, recipe: Recipe, world: int, peak_source: str, resumed_step: int) -> None:
        self._run, self._recipe, self._world = run, recipe, world
        self._ledger = Ledger(run.path / "goodput.jsonl")
        before = list(self._ledger.events())
        started = Event("started", time.time(), resumed_step, begin=_asked_at(run), world=world)
        self._ledger.append(started)
        self._events = [*before, started]
        if before:
            drop_lines_past(run, resumed_step)
        self._board = Board(run.tensorboard, purge_from=resumed_step + 1 if before else None)
        self._board.text(resumed_step, "run/start", _start_words(recipe, before, resumed_step, world, peak_source))
        self._board.text(resumed_step, "expert_load/legend", LEGEND)
        self._map_loads_VE: Tensor | None = None
        self._next_map = (resumed_step // recipe.logging.heat_maps_every + 1) * recipe.logging.heat_maps_every

    def interval(self, step: int, interval: Interval, figures: dict[str, Any], held_out: dict[str, float]) -> dict[str, Any]:
        """Write one interval; returns its figures with goodput and position added."""
        mean_seconds = dict(zip(PARTS, interval.seconds_WP.mean(dim=0).tolist(), strict=True))
        event = Event("interval", time.time(), step, steps=interval.steps, skipped=interval.skipped, seconds=mean_seconds)
        self._ledger.append(event)
        self._events.append(event)
        figures = {"step": step, "time": event.time, "world": self._world, **figures, "goodput": account(self._events)}
        self._run.append_metrics(finite(figures))
        self._board.scalars(step, scalars(figures))
        self._heat_maps(step, interval.loads_VE)
        self._board.flush()
        self._write_state(step, figures, held_out)
        return figures

    def validation(self, step: int, nats: dict[str, float]) -> None:
        self._run.append_metrics(finite({"step": step, "time": time.time(), "held_out": nats}))
        for source, value in nats.items():
            self._board.scalars(step, {f"held_out_loss/{source}": value, f"held_out_perplexity/{source}": perplexity(value)})
        self._board.flush()

    def close(self, step: int, seconds: dict[str, float], failed: bool) -> None:
        self._ledger.append(Event("failed" if failed else "ended", time.time(), step, seconds=seconds))
        self._board.close()

    def _write_state(self, step: int, figures: dict[str, Any], held_out: dict[str, float]) -> None:
        left = (self._recipe.train.steps - step) * figures["step_seconds"]
        names = ("loss", "tokens_per_second", "step_seconds", "model_flop_use", "lr", "grad_norm", "world", "repeats", "halting")
        shown = {name: figures[name] for name in names}
        shown |= {"steps": self._recipe.train.steps, "seconds_left": left, "goodput": figures["goodput"]["goodput"]}
        state = "stopping" if self._run.stop_path.exists() else "running"
        self._run.write_state(state, step=step, held_out=finite(held_out), **finite(shown))

    def _heat_maps(self, step: int, loads_VE: Tensor) -> None:
        """One picture a layer with routed experts (its visits from top to bottom) of the routes since the last pictures."""
        if loads_VE.numel() == 0:
            return
        self._map_loads_VE = loads_VE if self._map_loads_VE is None else self._map_loads_VE + loads_VE
        if step < self._next_map:
            return
        layers = list(self._recipe.model.routed_visits().values())
        relative_VE = relative_load(self._map_loads_VE)
        for layer in sorted(set(layers)):
            rows = [row for row, at in enumerate(layers) if at == layer]
            self._board.picture(step, f"expert_load/layer_{layer}", heat_map(self._map_loads_VE[rows].numpy()))
            self._board.histogram(step, f"expert_load_over_even_share/layer_{layer}", relative_VE[rows].numpy())
        self._map_loads_VE = None
        every = self._recipe.logging.heat_maps_every
        self._next_map = (step // every + 1) * every


def scalars(figures: dict[str, Any]) -> dict[str, float]:
    """The curves of an interval, tag -> value."""
    curves = {
        "loss/train": figures["loss"],
        "loss/perplexity": figures["perplexity"],
        "loss/balance": figures["balance_loss"],
        "optimizer/learning_rate": figures["lr"],
        "optimizer/gradient_norm": figures["grad_norm"],
        "optimizer/gradient_norm_max": figures["grad_norm_max"],
        "optimizer/skipped_steps": figures["skipped_steps"],
        "speed/tokens_per_second": figures["tokens_per_second"],
        "speed/step_seconds": figures["step_seconds"],
        "speed/model_flop_use": figures["model_flop_use"],
        "speed/token_imbalance": figures["token_imbalance"],
        "memory/host_gib_max": figures["host_bytes_max"] / 2**30,
        "goodput/goodput": figures["goodput"]["goodput"],
    }
    if figures["device_bytes_max"]:
        curves["memory/device_gib_max"] = figures["device_bytes_max"] / 2**30
    if figures["damaged_windows"]:
        curves["data/damaged_windows"] = figures["damaged_windows"]
    if figures["repeats"] is not None:
        curves["depth/repeats"] = figures["repeats"]
    if "epoch" in figures:
        curves["loss/epoch"] = figures["epoch"]
    curves |= {f"step_time/{name}": seconds for name, seconds in figures["parts"].items()}
    curves |= {f"goodput/lost_{name}_seconds": seconds for name, seconds in figures["goodput"]["lost"].items()}
    curves |= {f"halting/{name}": value for name, value in figures["halting"].items()}
    return curves | _grouped("load", figures["load"]) | _grouped("use", figures["use"])


def _grouped(group: str, figures: dict[str, Any]) -> dict[str, float]:
    """The curves of a group, among them those `NAME_by_PLACE`: one for every number of a visit or layer."""
    curves: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            label, _, place = name.rpartition("_by_")
            curves |= {f"{group}_by_{place}/{label}_{number:02d}": one for number, one in value.items()}
        else:
            curves[f"{group}/{name}"] = value
    return curves


def drop_lines_past(run: RunFolder, step: int) -> None:
    """Take out of metrics.jsonl what a restart will do again, and a line that a crash cut in half."""
    if not run.metrics_path.exists():
        return
    kept = [json.dumps(figures) + "\n" for figures in read_lines(run.metrics_path) if figures.get("step", 0) <= step]
    write_text(run.metrics_path, "".join(kept))


def _asked_at(run: RunFolder) -> float:
    """When this start was asked for: the launcher's `starting` state, else the writing of the recipe."""
    state = run.read_state()
    if state["state"] == "starting" and "time" in state:
        return float(state["time"])
    return os.stat(run.recipe_path).st_mtime if run.recipe_path.exists() else time.time()


def _start_words(recipe: Recipe, before: list[Event], step: int, world: int, peak_source: str) -> str:
    layout = f"{world} ranks, expert parallelism {recipe.expert_parallel.size}"
    peak = f"Model FLOP use is against: {peak_source}."
    worlds = [event.world for event in before if event.kind == "started"]
    if not worlds:
        return f"Started with {layout}. {peak}"
    change = f"world changed from {worlds[-1]} to {world} ranks" if worlds[-1] != world else "same world"
    return f"Resumed after step {step} with {layout} ({change}). {peak}"
