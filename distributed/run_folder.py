"""The folder of a run: the only thing that trainer, command line and a later resume share.

runs/<name>/recipe.yaml          the resolved recipe, as it was started
runs/<name>/state.json           state, step, loss, tokens/s: written by rank 0, read by `status`
runs/<name>/metrics.jsonl        one line of figures a logging interval
runs/<name>/summary.json         what the end of the run says
runs/<name>/checkpoints/         step-00000100/ ...
runs/<name>/tensorboard/         event files
runs/<name>/logs/                driver.log, rank-00000.log ...
runs/<name>/choices/             recorded expert choices (router.replay)
runs/<name>/events.jsonl         a line for every failure, restart and growth
runs/<name>/goodput.jsonl        where the time went, a line a logging interval
runs/<name>/skips.json           steps of the sample order that are left out after a roll-back
runs/<name>/damaged_windows.jsonl    windows that could not be read and were left out
runs/<name>/move.json            which movement `expert_parallel.move: auto` chose, and why
runs/<name>/machine.json         of a comparison's run: what it was trained on
runs/<name>/lock                 locked while processes work on the run; says which and since when
runs/<name>/stop                 a request: stop at the end of this step, after a checkpoint
runs/<name>/regroup              a request: end after the next checkpoint, to go on with other workers
runs/<comparison>/<name>/        a run of a comparison: the same files but for those of a supervisor
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.files import read_object, write_text
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe, recipe_text

LOOK_SECONDS = 1.0
NOT_FIGURES = ("state", "time", "reason", "error", "rank")
STATES = ("starting", "running", "stopping", "stopped", "finished", "failed")


def project_root() -> Path:
    """Where `runs/` and `corpora/` live: MOOTRON_HOME, else the repository."""
    return Path(os.environ.get("MOOTRON_HOME", Path(__file__).resolve().parent.parent)).resolve()


def runs_root() -> Path:
    """The folder that holds all runs."""
    return project_root() / "runs"


def data_folder(recipe: Recipe) -> Path:
    """The prepared data set of a recipe; relative folders lie below the project root."""
    folder = Path(recipe.data.folder)
    return folder if folder.is_absolute() else project_root() / folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The block writes into `folder`, which the file system may refuse.

    Raises:
        RunError: it does.
    """
    try:
        yield
    except OSError as fault:
        raise RunError(f"folder {folder} cannot be written: {fault.strerror}; set MOOTRON_HOME to a writable folder") from None


def is_plain(name: str) -> bool:
    """Whether it is the name of one folder."""
    return "/" not in name and name not in ("", ".", "..")


def all_runs() -> list[RunFolder]:
    """Every run below the runs root, those of comparisons included, by name."""
    found = [path.parent for pattern in ("*/recipe.yaml", "*/*/recipe.yaml") for path in runs_root().glob(pattern)]
    return [RunFolder(folder) for folder in sorted(found)]


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run."""

    path: Path

    @staticmethod
    def named(name: str) -> RunFolder:
        """The run `name` below the runs root, or `COMPARISON/RUN` in a comparison's folder, whether or not it exists."""
        parts = name.split("/")
        if len(parts) > 2 or not all(map(is_plain, parts)):
            raise RunError(f"run name '{name}' must be a plain name without '/', or COMPARISON/RUN")
        return RunFolder(runs_root() / name)

    @staticmethod
    def existing(name: str) -> RunFolder:
        """The run `name`; a RunError that lists the known runs when there is none."""
        folder = RunFolder.named(name)
        if not folder.recipe_path.is_file():
            known = ", ".join(run.full_name for run in all_runs())
            raise RunError(f"there is no run '{name}' in {runs_root()}; runs: {known or 'none yet'}")
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def comparison(self) -> RunFolder | None:
        """The folder of the comparison that the run belongs to; None for a run of its own."""
        above = self.path.parent
        return RunFolder(above) if above.parent == runs_root() else None

    @property
    def full_name(self) -> str:
        """What `named` finds it by: `name`, or `COMPARISON/RUN`."""
        return self.name if self.comparison is None else f"{self.comparison.name}/{self.name}"

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def choices(self) -> Path:
        return self.path / "choices"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def stop_path(self) -> Path:
        return self.path / "stop"

    @property
    def regroup_path(self) -> Path:
        return self.path / "regroup"

    def create(self, recipe: Recipe) -> None:
        """Make the folder and write the resolved recipe into it.

        Raises:
            RunError: the place cannot be written.
        """
        with writing(self.path):
            for folder in (self.path, self.checkpoints, self.tensorboard, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            write_text(self.recipe_path, recipe_text(recipe))

    def recipe(self) -> Recipe:
        """The recipe as it was started.

        Raises:
            RunError: its file is damaged.
        """
        return load_recipe(self.recipe_path)

    def write_state(self, state: str, **figures: Any) -> None:
        """Replace state.json; `figures` are shown by `status` (step, steps, loss, tokens_per_second, ...)."""
        if state not in STATES:
            raise ValueError(f"state '{state}' is not one of {STATES}")
        write_text(self.path / "state.json", json.dumps({"state": state, "time": time.time(), **figures}))

    def change_state(self, state: str, **figures: Any) -> None:
        """Write another state and keep the figures of the last one, but not why it ended."""
        kept = {name: value for name, value in self.read_state().items() if name not in NOT_FIGURES}
        self.write_state(state, **{**kept, **figures})

    def read_state(self) -> dict[str, Any]:
        """The last state written; `{"state": "starting"}` before the first, and where the file is damaged."""
        found = read_object(self.path / "state.json")
        return found if found.get("state") in STATES else {"state": "starting"}

    def append_metrics(self, figures: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(figures) + "\n")

    def wait_unless_stopped(self, seconds: float) -> bool:
        """Let time pass; False as soon as the run is asked to stop."""
        deadline = time.monotonic() + seconds
        while not self.stop_path.exists():
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(LOOK_SECONDS, left))
        return False

    def append_damaged(self, step: int, faults: dict[int, str]) -> None:
        """Note windows that were left out in step `step`, or in the validation after it, because they could not be read.

        Every rank may call it. A step that is done again stands there again.
        """
        if not faults:
            return
        lines = [json.dumps({"step": step, "window": window, "fault": fault}) + "\n" for window, fault in faults.items()]
        with (self.path / "damaged_windows.jsonl").open("a") as file:
            file.write("".join(lines))
