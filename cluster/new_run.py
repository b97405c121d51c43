"""A new run from what the user typed: its recipe, its folder, its checks, its start."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from cluster.checkpoints import checkpoint_steps
from cluster.corpus import ensure_corpus
from cluster.disk import delete
from cluster.group_plan import GroupPlan
from cluster.launcher import Start, launch
from cluster.layouts import fit_expert_parallel
from cluster.recipes import find_recipe, split_words
from cluster.run_lock import RunLock, lock_path
from cluster.sizing import plan_run
from distributed.errors import RunError
from distributed.recipe import NAME_RULE, Recipe, is_run_name
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder
from distributed.start_rules import check_start


@dataclass(frozen=True)
class NewRun:
    """The words after `train`, and its options."""

    words: list[str]
    name: str | None = None
    branch_from: str | None = None
    address: str | None = None

    def recipe(self) -> Recipe:
        """The checked recipe; a branch starts from the recipe of its origin unless another is named.

        Raises:
            RunError: recipe, override, name or branch is wrong.
        """
        if self.name is not None and not is_run_name(self.name):
            raise RunError(f"--name '{self.name}' {NAME_RULE}")
        named, overrides = split_words(self.words)
        path = find_recipe(named)
        name = self.name
        if self.branch_from is not None:
            origin, step = find_checkpoint(self.branch_from)
            if all("=" in word for word in self.words):
                path = origin.recipe_path
            name = name or f"{origin.name}-from-{step}"
        if name is not None:
            overrides = [*overrides, f"name={name!r}"]
        if self.address is not None:
            overrides = [*overrides, f"cluster.address={self.address!r}"]
        return load_recipe(path, overrides)

    def named_recipe(self) -> Recipe:
        """The recipe under a name that is free: one that came with the recipe gets a number once its run has finished.

        A name given by hand is kept.
        """
        recipe = self.recipe()
        if self.name is not None:
            return recipe
        name, number = recipe.name, 2
        while RunFolder.named(name).read_state()["state"] == "finished":
            name, number = f"{recipe.name}-{number}", number + 1
        return recipe.model_copy(update={"name": name})

    def plan(self) -> tuple[Recipe, GroupPlan]:
        """The recipe as it will run here, and its worker group.

        Raises:
            RunError, ClusterError: the recipe cannot be trained by the workers that there are.
        """
        recipe = self.named_recipe()
        plan = plan_run(recipe)
        chosen = recipe.cluster.workers is not None or any(word.startswith("expert_parallel.size=") for word in self.words)
        if plan.gpus_per_worker and not chosen:
            recipe = fit_expert_parallel(recipe, plan.workers)
        check_start(recipe, plan.workers)
        return recipe, plan

    def start(self, console: Console) -> int:
        """Check everything, then run; returns the exit code."""
        recipe, plan = self.plan()
        with RunLock(RunFolder.named(recipe.name)) as lock:
            clear_unstarted(lock.run, console)
            return self.begin(recipe, plan, lock, console)

    def begin(self, recipe: Recipe, plan: GroupPlan, lock: RunLock, console: Console) -> int:
        """Run what `plan` gave, in the empty folder that `lock` holds; returns the exit code."""
        ensure_corpus(recipe, console)
        lock.run.create(recipe)
        announce(recipe, plan, lock.run, console)
        return launch(Start(lock.run, recipe, plan, branch_from=self.branch_from), lock, console)


def clear_unstarted(run: RunFolder, console: Console) -> None:
    """Empty the folder of a run that never reached a checkpoint, and say so; the caller holds its lock.

    Raises:
        RunError: the run has checkpoints, which `train` never touches, or the folder is a comparison's.
    """
    if any(run.path.glob("*/recipe.yaml")):
        raise RunError(f"{run.path} holds the runs of a comparison; choose another name with --name")
    if has_checkpoint(run):
        state = run.read_state()
        if state["state"] == "finished":
            raise RunError(
                f"run '{run.name}' has finished; choose another name with --name, "
                f"or train it longer with ./launch.sh resume {run.name} train.steps=N"
            )
        raise RunError(
            f"run '{run.name}' has checkpoints already (step {state.get('step', 'unknown')}); "
            f"go on with ./launch.sh resume {run.name}, or choose another name with --name"
        )
    if run.recipe_path.exists():
        console.print(f"removing the earlier try in {run.path}: it has no checkpoint", highlight=False, soft_wrap=True)
    clear(run)


def check_stands_alone(run: RunFolder) -> None:
    """Whether the run may be stopped and resumed by itself.

    Raises:
        RunError: it belongs to a comparison, which does both.
    """
    if run.comparison is not None:
        raise RunError(
            f"run '{run.full_name}' belongs to comparison '{run.comparison.name}': Ctrl-C stops all of that, the same ./launch.sh compare "
            f"goes on with it; ./launch.sh train --from {run.full_name} branches from this run"
        )


def clear(run: RunFolder) -> None:
    """Empty a run's folder but for its lock, which the caller holds."""
    for entry in run.path.iterdir():
        if entry != lock_path(run):
            delete(entry)


def has_checkpoint(run: RunFolder) -> bool:
    """Whether a resume has something to start from."""
    return bool(checkpoint_steps(run))


def find_checkpoint(words: str) -> tuple[RunFolder, int]:
    """Run and step of `RUN@STEP`; `RUN` alone means its newest checkpoint.

    Raises:
        RunError: no such run or no such checkpoint; the message lists what there is.
    """
    name, at, step = words.partition("@")
    run = RunFolder.existing(name)
    found = checkpoint_steps(run)
    if not found:
        raise RunError(f"--from {words}: run '{name}' has no checkpoint")
    if not at:
        return run, found[-1]
    if not step.isdigit() or int(step) not in found:
        raise RunError(f"--from {words}: run '{name}' has no checkpoint at step '{step}'; it has {', '.join(map(str, found))}")
    return run, int(step)


def announce(recipe: Recipe, plan: GroupPlan, run: RunFolder, console: Console) -> None:
    """What is about to run, in a line or two."""
    on = "one a GPU" if plan.gpus_per_worker else "on CPUs"
    console.print(
        f"run [bold]{run.name}[/]: {recipe.train.steps:,} steps, {plan.workers} workers {on}, "
        f"expert parallelism {recipe.expert_parallel.size}; folder {run.path}",
        highlight=False,
        soft_wrap=True,
    )
