"""What a comparison found: the figures of every run, gathered from the run folders by recipe."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

from cluster.comparison.curves import RunCurves, read_curves
from cluster.comparison.entries import Comparison, Entry
from cluster.comparison.matching import Cost, cost_of
from cluster.comparison.piece import MACHINE_FILE
from cluster.comparison.schedule import is_finished
from cluster.errors import ClusterError
from data_pipeline.files import read_object
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.summary import read_summary, run_lines


@dataclass(frozen=True)
class RunResult:
    """One run: `summary` is that of summary.json, empty before the end; `trouble` says why it failed or how far it is."""

    seed: int
    finished: bool
    curves: RunCurves
    summary: dict[str, Any]
    machine: dict[str, Any]
    trouble: str | None

    @property
    def held_out(self) -> float | None:
        """Nats a token at the end of a finished run; None where it diverged."""
        nats: float | None = self.summary["losses"]["held_out"]
        return nats


@dataclass(frozen=True)
class RecipeResult:
    """A recipe and its runs, one a seed."""

    label: str
    recipe: Recipe
    cost: Cost
    runs: list[RunResult]

    @property
    def finished(self) -> list[RunResult]:
        """Runs that did all their steps."""
        return [run for run in self.runs if run.finished]

    @property
    def nats_by_seed(self) -> dict[int, float]:
        """Held-out nats a token of the finished runs that did not diverge."""
        return {run.seed: run.held_out for run in self.finished if run.held_out is not None}

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.train.global_batch * self.recipe.data.seq_len

    def figures(self, *path: str) -> list[float]:
        """One figure of summary.json, of every finished run that has it: `figures("speed", "tokens_per_second")`."""
        found = []
        for run in self.finished:
            value: Any = run.summary
            for name in path:
                value = (value or {}).get(name)
            if value is not None:
                found.append(float(value))
        return found

    def average(self, *path: str) -> float | None:
        """Mean over the finished runs; None where none has the figure."""
        values = self.figures(*path)
        return mean(values) if values else None


def gather(comparison: Comparison) -> list[RecipeResult]:
    """All that the run folders hold, in the order of the recipes."""
    return [
        RecipeResult(label, recipe, cost_of(recipe), [_read(entry) for entry in comparison.entries if entry.label == label])
        for label, recipe in comparison.recipes.items()
    ]


def check_records(entry: Entry) -> None:
    """What a run has written so far is all that a report needs.

    Raises:
        ClusterError: a version of Mootron that noted less has trained it.
    """
    steps = [line for line in run_lines(entry.run) if line.get("interval_steps")]
    if any("flops" not in line for line in steps):
        missing = "the multiply-accumulates of its steps"
    elif is_finished(entry) and "windows" not in read_summary(entry.run)["losses"]:
        missing = "which held-out windows its baselines were scored over"
    else:
        return
    raise ClusterError(
        f"run {entry.run.full_name} was trained by an older version, which did not note {missing}; "
        f"train it again: choose another --name, or remove {entry.run.path}"
    )


def _read(entry: Entry) -> RunResult:
    state, finished = entry.run.read_state(), is_finished(entry)
    return RunResult(
        entry.seed,
        finished,
        read_curves(run_lines(entry.run)),
        read_summary(entry.run) if finished else {},
        _machine(entry.run),
        None if finished else _trouble(entry, state),
    )


def _trouble(entry: Entry, state: dict[str, Any]) -> str:
    if state["state"] == "failed":
        return f"failed: {state.get('reason', 'no reason was noted; its log may tell')}"
    if not entry.run.recipe_path.exists():
        return "not begun"
    return f"{state['state']} at step {state.get('step') or 0} of {entry.recipe.train.steps}"


def _machine(run: RunFolder) -> dict[str, Any]:
    return read_object(run.path / MACHINE_FILE)
