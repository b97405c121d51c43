"""A run whose ranks another launcher starts (torchrun, Slurm): everything that comes before them, and the line for them."""

from __future__ import annotations

import os
import shlex
import sys

from rich.console import Console

from cluster.corpus import ensure_corpus
from cluster.new_run import NewRun, clear_unstarted
from cluster.recipes import CODE_ROOT
from cluster.run_lock import RunLock
from cluster.sizing import local_gpus, plan_group
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder, project_root
from distributed.start_rules import check_start

PORT = 29500  # torchrun's own default


def prepare_only(request: NewRun, console: Console) -> int:
    """Check the recipe, prepare its corpus, make the run's folder, and print what starts the ranks; returns the exit code.

    Raises:
        RunError, ClusterError, DataError: the recipe is wrong, does not fit its workers, or its corpus cannot be prepared.
    """
    if request.branch_from is not None:
        raise RunError("--prepare-only makes a run that begins at its first step; leave --from out, or let ./launch.sh start the workers")
    recipe = request.named_recipe()
    # The ranks may live on other machines: workers that are named need not fit this one.
    gpus = 0 if recipe.cluster.workers else local_gpus()
    workers = plan_group(recipe, os.cpu_count() or 1, gpus, shared=False).workers
    check_start(recipe, workers)
    with RunLock(RunFolder.named(recipe.name)) as lock:
        clear_unstarted(lock.run, console)
        ensure_corpus(recipe, console)
        lock.run.create(recipe)
    console.print(f"run {recipe.name} is ready in {lock.run.path}; on {_where(recipe)}:", highlight=False, soft_wrap=True)
    console.print(start_line(recipe, workers), highlight=False, markup=False, soft_wrap=True)
    return 0


def start_line(recipe: Recipe, workers: int) -> str:
    """What a shell runs on each of the recipe's nodes; on several, HOST is to be replaced by the first one's name."""
    nodes = recipe.cluster.nodes or 1
    words = [
        "env",
        f"MOOTRON_HOME={project_root()}",
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(workers // nodes),
    ]
    words += ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"HOST:{PORT}"] if nodes > 1 else []
    return f"cd {shlex.quote(str(CODE_ROOT))} && {shlex.join([*words, '-m', 'distributed.trainer', recipe.name])}"


def _where(recipe: Recipe) -> str:
    nodes = recipe.cluster.nodes or 1
    return "this machine" if nodes == 1 else f"each of {nodes} nodes, HOST being the first"
