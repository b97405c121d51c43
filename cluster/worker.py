"""The process of one rank: calls the training function and leaves its result.

A fresh process of its own, not the Ray actor that starts it: thread counts and interfaces must stand in the environment
before torch loads, a process full of gRPC threads must not fork data loader workers, the exit code shows how the rank
died (killed, out of memory), and a crash at exit cannot take a result with it. Nothing here knows Ray.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from cluster.errors import USER_ERRORS
from cluster.exit_codes import DONE, FAILED, USER_ERROR
from cluster.lifeline import die_with_parent
from distributed.run_folder import RunFolder

TRAINER = "distributed.trainer:train"


def main(argv: list[str]) -> int:
    """Run one rank; RANK, WORLD_SIZE and the like are in the environment."""
    args = _parse(argv)
    die_with_parent(args.parent)
    faulthandler.enable()
    run = RunFolder(Path(args.run))
    code = DONE
    try:
        train = load_function(args.target)
        outcome = {"result": train(run.recipe(), run, args.resume, args.branch_from)}
    except USER_ERRORS as fault:
        print(fault, file=sys.stderr)
        outcome, code = {"error": str(fault)}, USER_ERROR
    except Exception as fault:
        traceback.print_exc()
        outcome, code = {"error": f"{type(fault).__name__}: {fault}"}, FAILED
    with os.fdopen(args.result_fd, "w") as pipe:
        json.dump(outcome, pipe)
    return code


def load_function(target: str) -> Callable[..., str]:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    function: Callable[..., str] = getattr(importlib.import_module(module), name)
    return function


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cluster.worker")
    parser.add_argument("--run", required=True)
    parser.add_argument("--target", default=TRAINER)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--branch-from", default=None)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--result-fd", type=int, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
