"""The process that holds a run's Ray and its worker group, started by the launcher.

A process and session of its own, so that a signal sent to the terminal's process group (Ctrl-C, `timeout`, Slurm) does
not reach Ray: only the launcher hears it and asks the run to stop through its folder. When the launcher dies, the
kernel sends SIGTERM here and everything below is taken down. What happened is told through state.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from cluster.errors import USER_ERRORS
from cluster.exit_codes import DONE, FAILED, RESUME_ME, USER_ERROR
from cluster.lifeline import die_with_parent
from cluster.rank_process import Outcome, rank_log
from cluster.ray_session import ray_session
from cluster.worker import TRAINER
from cluster.worker_group import GroupPlan, WorkerGroup
from distributed.run_folder import RunFolder

LOG_LINES = 12
NOT_FIGURES = ("state", "time", "reason", "error", "rank")


def main(argv: list[str]) -> int:
    """Run the group to its end; returns the exit code that the launcher passes on."""
    args = _parse(argv)
    die_with_parent(args.parent, signal.SIGTERM)
    run = RunFolder(Path(args.run))
    arguments = ["--target", args.target]
    arguments += ["--resume"] if args.resume else []
    arguments += ["--branch-from", args.branch_from] if args.branch_from else []
    try:
        return drive(run, GroupPlan(**args.plan), args.address, tuple(arguments))
    except USER_ERRORS as fault:
        fail(run, str(fault))
        return USER_ERROR
    except Exception as fault:
        traceback.print_exc()
        fail(run, f"the driver failed: {type(fault).__name__}: {fault}; see {run.logs / 'driver.log'}")
        return FAILED


def drive(run: RunFolder, plan: GroupPlan, address: str | None, arguments: tuple[str, ...]) -> int:
    """Start Ray and the group, wait, and take both down."""
    cpus = max(os.cpu_count() or 1, round(plan.cpus_per_worker * plan.workers))
    with ray_session(address, cpus=cpus, gpus=plan.gpus_per_worker * plan.workers):
        signal.signal(signal.SIGTERM, _terminated)
        group = WorkerGroup(plan, run)
        try:
            group.start(arguments)
            for rank, place in enumerate(group.places):
                print(f"rank {rank} on {place.host} ({place.address}, {place.interface}, {place.cores} cores)", flush=True)
            return conclude(run, group.wait())
        except Terminated:
            fail(run, "the run was killed")
            return FAILED
        finally:
            group.kill()


def conclude(run: RunFolder, outcomes: list[Outcome]) -> int:
    """Write the state that the outcomes amount to and choose the exit code."""
    failed = [outcome for outcome in outcomes if outcome.result is None]
    if failed:
        first = min(failed, key=lambda outcome: outcome.ended)  # the others fail because it is gone
        fail(run, explain(run, first))
        return USER_ERROR if first.code == USER_ERROR else FAILED
    result = outcomes[0].result
    if run.read_state()["state"] != result:
        run.write_state(str(result), **figures(run))
    return RESUME_ME if result == "stopped" else DONE


def explain(run: RunFolder, outcome: Outcome) -> str:
    """Which rank died, how, and the end of its log; a user's mistake is its message alone."""
    if outcome.code == USER_ERROR and outcome.error:
        return outcome.error
    log = rank_log(run, outcome.rank)
    how = outcome.error or how_it_ended(outcome.code)
    tail = "\n".join(f"  | {line}" for line in last_lines(log, LOG_LINES))
    return f"rank {outcome.rank} on {outcome.host} failed: {how}\n{log}:\n{tail}"


def how_it_ended(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often the system's memory killer)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code} without a result"


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a log; empty when there is none."""
    try:
        return path.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def fail(run: RunFolder, reason: str) -> None:
    """Set the state `failed`, keeping the last figures."""
    print(reason, file=sys.stderr, flush=True)
    run.write_state("failed", **figures(run), reason=reason)


def figures(run: RunFolder) -> dict[str, Any]:
    """Step, loss, speed and the like, from the last state."""
    return {name: value for name, value in run.read_state().items() if name not in NOT_FIGURES}


class Terminated(BaseException):
    """SIGTERM: the launcher died or was told twice."""


def _terminated(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the take-down is not to be cut short
    raise Terminated


def _parse(argv: list[str]) -> argparse.Namespace:
    import json

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
