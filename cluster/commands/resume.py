"""Go on with a run from its newest whole checkpoint.

field=value may change what distributed/resume_rules.py lists, and no more: how long, how often, on which workers and in what layout,
never what is computed. The run keeps the changes.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes, for example train.steps=400")


def run(args: argparse.Namespace) -> int:
    """Resume and follow the run to its end."""
    from rich.console import Console

    from cluster.corpus import ensure_corpus
    from cluster.launcher import Start, launch
    from cluster.new_run import announce, check_stands_alone, has_checkpoint
    from cluster.run_lock import RunLock
    from cluster.sizing import plan_run
    from distributed.errors import RunError
    from distributed.recipe_file import load_recipe
    from distributed.resume_rules import check_overrides
    from distributed.run_folder import RunFolder
    from distributed.start_rules import check_start

    console = Console()
    folder = RunFolder.existing(args.name)
    check_stands_alone(folder)
    recipe = load_recipe(folder.recipe_path, args.overrides)
    check_overrides(args.overrides)
    state = folder.read_state()
    if state["state"] == "finished" and recipe.train.steps <= state.get("step", 0):
        raise RunError(
            f"run '{args.name}' has finished its {state['step']} steps; "
            f"to train longer: ./launch.sh resume {args.name} train.steps={2 * state['step']}"
        )
    if not has_checkpoint(folder):
        raise RunError(f"run '{args.name}' has no checkpoint to resume from; start it again with ./launch.sh train")
    plan = plan_run(recipe)
    check_start(recipe, plan.workers)
    with RunLock(folder) as lock:
        ensure_corpus(recipe, console)
        folder.create(recipe)
        announce(recipe, plan, folder, console)
        return launch(Start(folder, recipe, plan, resume=True), lock, console)
