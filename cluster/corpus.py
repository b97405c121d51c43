"""The data of a recipe, made when it is missing."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_pipeline.manifest import MANIFEST, Manifest, check
from distributed.recipe import Recipe
from distributed.run_folder import data_folder

PLAIN_SECONDS = 10.0


def ensure_corpus(recipe: Recipe, console: Console, use_ray: bool = True) -> Manifest:
    """The recipe's prepared data, checked; prepared first where there is none. Without `use_ray`: in this process.

    Raises:
        DataError: it cannot be prepared, is damaged, or was made from something else.
    """
    folder = data_folder(recipe)
    if not (folder / MANIFEST).exists():
        prepare_corpus(recipe, console, use_ray)
    return check(folder, recipe.data)


def prepare_corpus(recipe: Recipe, console: Console, use_ray: bool = True) -> Manifest:
    """Prepare under a private Ray (or the recipe's cluster), or in this process, with a progress bar."""
    from data_pipeline.prepare import prepare

    folder = data_folder(recipe)
    console.print(f"preparing {', '.join(source.name for source in recipe.data.sources)} into {folder}", highlight=False, soft_wrap=True)
    if not use_ray:
        with _Stages(console) as stages:
            return prepare(recipe.data, folder, stages.advance, workers=0)
    from cluster.ray_session import ray_session

    with ray_session(recipe.cluster.address), _Stages(console) as stages:
        return prepare(recipe.data, folder, stages.advance)


class _Stages:
    """A bar a stage on a terminal; elsewhere a line a stage, and one now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description:<28}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.tasks: dict[str, object] = {}
        self.shown: dict[str, float] = {}

    def __enter__(self) -> _Stages:
        self.bar.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self.bar.stop()

    def advance(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage are complete."""
        if not self.console.is_terminal:
            self._plain(stage, done, total)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total)
        self.bar.update(self.tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

    def _plain(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.shown.get(stage, float("-inf")) < PLAIN_SECONDS:
            return
        self.shown[stage] = now
        self.console.print(f"  {stage}: {done} of {total}", highlight=False)
