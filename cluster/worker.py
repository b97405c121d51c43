"""The process of one rank: calls the training function and leaves its result.

A process of its own, not the Ray actor that asks for it: thread counts and interfaces must stand in the environment
before torch loads, a process full of gRPC threads must not fork data loader workers, the exit code shows how the rank
died (killed, out of memory), and a crash at exit cannot take a result with it. Nothing here knows Ray.

It is forked from its host's fork server (fork_server.py), or a fresh process where that may not fork.
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
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from cluster.errors import USER_ERRORS
from cluster.exit_codes import DONE, FAILED, USER_ERROR
from cluster.layouts import with_expert_parallel
from cluster.preflight import preflight
from distributed import heartbeat
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

TRAINER = "distributed.trainer:train"
EXPERT_PARALLEL = "MOOTRON_EXPERT_PARALLEL"
ERROR_CHARACTERS = 2000
"""A message of this length goes to the actor whole or not at all, even if this process is killed meanwhile."""


def main(argv: Sequence[str], connection: Connection | None = None) -> int:
    """Run one rank; RANK, WORLD_SIZE and the like are in the environment. `connection`: to its actor (cluster/child.py)."""
    args = _parse(argv)
    connection = connection or Connection(args.connection)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    connection.send_bytes(json.dumps({"pid": os.getpid()}).encode())
    heartbeat.start()
    outcome, code = run_rank(RunFolder(Path(args.run)), args)
    connection.send_bytes(json.dumps(outcome).encode())
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
        return {"error": str(fault)[:ERROR_CHARACTERS]}, USER_ERROR
    except Exception as fault:
        traceback.print_exc()
        return {"error": f"{type(fault).__name__}: {fault}"[:ERROR_CHARACTERS]}, FAILED


def laid_out(recipe: Recipe) -> Recipe:
    """The recipe in the layout of this group, which after a loss may have fewer ranks share the experts."""
    size = os.environ.get(EXPERT_PARALLEL)
    return with_expert_parallel(recipe, int(size)) if size else recipe


def load_function(target: str) -> Callable[..., str]:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    function: Callable[..., str] = getattr(importlib.import_module(module), name)
    return function


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cluster.worker")
    parser.add_argument("--run", required=True)
    parser.add_argument("--target", default=TRAINER)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--branch-from", default=None)
    parser.add_argument("--connection", type=int)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
