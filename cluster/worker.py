"""The process of one rank: calls the training function and leaves its result.

A fresh process of its own, not the Ray actor that starts it: thread counts and interfaces must stand in the environment
before torch loads, a process full of gRPC threads must not fork data loader workers, the exit code shows how the rank
died (killed, out of memory), and a crash at exit cannot take a result with it. Nothing here knows Ray.

With `--warm-up` it first loads a list of modules and then waits for its task, one line of JSON on its standard input.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from cluster.errors import USER_ERRORS
from cluster.exit_codes import DONE, FAILED, USER_ERROR
from cluster.layouts import with_expert_parallel
from cluster.lifeline import die_with_parent
from cluster.preflight import preflight
from cluster.warm_up import leave_modules, modules_path, receive_task, warm_up
from distributed import heartbeat
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

TRAINER = "distributed.trainer:train"
EXPERT_PARALLEL = "MOOTRON_EXPERT_PARALLEL"


def main(argv: list[str]) -> int:
    """Run one rank; RANK, WORLD_SIZE and the like are in the environment."""
    args = _parse(argv)
    die_with_parent(args.parent)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    if args.warm_up:
        warm_up(Path(args.warm_up), RunFolder(Path(args.run)).recipe().data.loader_workers)
        arguments = receive_task()
        if arguments is None:
            return DONE
        args = _parse([*arguments, "--parent", str(args.parent), "--result-fd", str(args.result_fd)])
    if heartbeat.VARIABLE in os.environ:
        heartbeat.start()
        leave_modules(modules_path(Path(os.environ[heartbeat.VARIABLE])))
    outcome, code = run_rank(RunFolder(Path(args.run)), args)
    with os.fdopen(args.result_fd, "w") as pipe:
        json.dump(outcome, pipe)
    return code


def run_rank(run: RunFolder, args: argparse.Namespace) -> tuple[dict[str, str], int]:
    """Preflight and training: what to tell the supervisor, and the exit code."""
    try:
        train = load_function(args.target)
        recipe = laid_out(run.recipe())
        if recipe.cluster.preflight:
            preflight(recipe.cluster.timeout_seconds)
        return {"result": train(recipe, run, args.resume, args.branch_from)}, DONE
    except USER_ERRORS as fault:
        print(fault, file=sys.stderr)
        return {"error": str(fault)}, USER_ERROR
    except Exception as fault:
        traceback.print_exc()
        return {"error": f"{type(fault).__name__}: {fault}"}, FAILED


def laid_out(recipe: Recipe) -> Recipe:
    """The recipe in the layout of this group, which after a loss may have fewer ranks share the experts."""
    size = os.environ.get(EXPERT_PARALLEL)
    return with_expert_parallel(recipe, int(size)) if size else recipe


def load_function(target: str) -> Callable[..., str]:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    function: Callable[..., str] = getattr(importlib.import_module(module), name)
    return function


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cluster.worker")
    parser.add_argument("--warm-up", metavar="MODULES")
    parser.add_argument("--run", required=True)
    parser.add_argument("--target", default=TRAINER)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--branch-from", default=None)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--result-fd", type=int, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
