"""The process that holds a run's Ray and its supervisor, started by the launcher.

A process and session of its own, so that a signal sent to the terminal's process group (Ctrl-C, `timeout`, Slurm) does
not reach Ray: only the launcher hears it and asks the run to stop through its folder. When the launcher dies, the
kernel sends SIGTERM here and everything below is taken down. What happened is told through state.json and events.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from cluster.errors import USER_ERRORS
from cluster.exit_codes import FAILED, USER_ERROR
from cluster.group_plan import GroupPlan
from cluster.head_watch import HeadLost, head_answers, leave, watch_head
from cluster.lifeline import die_with_parent
from cluster.ray_session import ray_session
from cluster.supervisor import Supervisor, fail
from cluster.worker import TRAINER
from distributed.run_folder import RunFolder


def main(argv: list[str]) -> int:
    """Supervise the run to its end; returns the exit code that the launcher passes on."""
    args = _parse(argv)
    die_with_parent(args.parent, signal.SIGTERM)
    run = RunFolder(Path(args.run))
    arguments = ["--target", args.target]
    arguments += ["--branch-from", args.branch_from] if args.branch_from else []
    try:
        return drive(run, GroupPlan(**args.plan), args.address, tuple(arguments), args.resume)
    except USER_ERRORS as fault:
        fail(run, str(fault))
        return USER_ERROR
    except Exception as fault:
        traceback.print_exc()
        fail(run, f"the driver failed: {type(fault).__name__}: {fault}; see {run.logs / 'driver.log'}")
        return FAILED


def drive(run: RunFolder, plan: GroupPlan, address: str | None, arguments: tuple[str, ...], resume: bool) -> int:
    """Start Ray, supervise, and take both down."""
    recipe = run.recipe()
    most = max(plan.workers, recipe.cluster.max_workers or 0)
    cpus = max(os.cpu_count() or 1, round(plan.cpus_per_worker * most))
    with ray_session(address, cpus=cpus, gpus=plan.gpus_per_worker * plan.workers):
        signal.signal(signal.SIGTERM, _terminated)
        supervisor = Supervisor(run, recipe, plan, arguments, resume)
        watch_head()
        try:
            return supervisor.supervise()
        except Terminated:
            fail(run, "the run was killed")
            return FAILED
        except Exception as fault:
            if isinstance(fault, HeadLost) or not head_answers():
                leave(f"Ray's head is gone: {type(fault).__name__}: {fault}")
            raise
        finally:
            supervisor.kill()


class Terminated(BaseException):
    """SIGTERM: the launcher died or was told twice."""


def _terminated(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the take-down is not to be cut short
    raise Terminated


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cluster.driver")
    parser.add_argument("--run", required=True)
    parser.add_argument("--plan", type=json.loads, required=True)
    parser.add_argument("--address", default=None)
    parser.add_argument("--target", default=TRAINER)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--branch-from", default=None)
    parser.add_argument("--parent", type=int, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
