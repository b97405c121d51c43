"""The process a person sees: starts the driver of a run, shows its progress, hears the signals, says how it ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

from rich.console import Console

from cluster.checkpoints import checkpoint_steps
from cluster.errors import USER_ERRORS
from cluster.events import RunEvent, append_event, read_events, since_launch
from cluster.exit_codes import DONE, DRIVER_LOST, FAILED, RESUME_ME, USER_ERROR
from cluster.failures import how_it_ended
from cluster.group_plan import GroupPlan
from cluster.progress import follow
from cluster.recipes import CODE_ROOT
from cluster.restarts import decide
from cluster.run_lock import RunLock
from cluster.worker import TRAINER
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TAKE_DOWN_SECONDS = 20.0


@dataclass(frozen=True)
class Start:
    """One start of a run whose folder holds its recipe."""

    run: RunFolder
    recipe: Recipe
    plan: GroupPlan
    resume: bool = False
    branch_from: str | None = None
    target: str = TRAINER

    def command(self) -> list[str]:
        """The driver's command line."""
        words = [sys.executable, "-P", "-m", "cluster.driver", "--run", str(self.run.path), "--plan", json.dumps(asdict(self.plan))]
        words += ["--target", self.target, "--parent", str(os.getpid())]
        words += ["--address", self.recipe.cluster.address] if self.recipe.cluster.address else []
        words += ["--resume"] if self.resume else []
        words += ["--branch-from", self.branch_from] if self.branch_from else []
        return words


def launch(start: Start, lock: RunLock, console: Console) -> int:
    """Run to the end; returns the exit code. The caller holds the run's lock, which the driver shares.

    A driver that is killed, or whose Ray is gone, is replaced: within the bounds that hold for ranks, from the newest checkpoint.

    Raises:
        RunError: the workers found a mistake that the user can mend.
    """
    run = start.run
    run.stop_path.unlink(missing_ok=True)
    run.change_state("starting")
    append_event(run, RunEvent("launched"))
    with StopOnSignal(run, console) as signals:
        while True:
            signals.driver = driver = start_driver(start, lock)
            follow(run, start.recipe.train.steps, lambda driver=driver: driver.poll() is None, console)  # type: ignore[misc]
            code = driver.wait()
            if signals.heard or not is_lost(run, code) or not go_on(run, start.recipe, code, console):
                break
            start = replace(start, resume=True)
    return conclude(run, code, console)


def start_driver(start: Start, lock: RunLock) -> subprocess.Popen[bytes]:
    """The process that holds the run's Ray, in a session of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(CODE_ROOT), os.environ.get("PYTHONPATH"))))}
    with (start.run.logs / "driver.log").open("ab") as log:
        return subprocess.Popen(
            start.command(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock.descriptor,),
            start_new_session=True,
        )


def is_lost(run: RunFolder, code: int) -> bool:
    """Whether the driver ended in a way that says nothing about the run: killed, its Ray gone, or dead without a reason given."""
    if code in (DONE, RESUME_ME, USER_ERROR):
        return False
    return not (code == FAILED and run.read_state().get("reason"))


def go_on(run: RunFolder, recipe: Recipe, code: int, console: Console) -> bool:
    """Note a lost driver, wait as is due, and say whether another may start."""
    how = "Ray's head is gone" if code == DRIVER_LOST else how_it_ended(code)
    step = run.read_state().get("step")
    append_event(run, RunEvent("driver lost", host=socket.gethostname(), step=step, reason=how))
    decision = decide(since_launch(read_events(run)), recipe.cluster.max_failures_an_hour, time.time())
    if not decision.go_on:
        run.change_state("failed", reason=f"the driver was lost: {how}; {decision.reason}")
        return False
    console.print(f"the driver was lost ({how}); another starts", highlight=False)
    return run.wait_unless_stopped(decision.wait_seconds)


class StopOnSignal:
    """While the block runs, the first signal asks the run to stop after a checkpoint, the second ends it at once."""

    def __init__(self, run: RunFolder, console: Console) -> None:
        self.run, self.console = run, console
        self.driver: subprocess.Popen[bytes] | None = None
        self.previous: dict[int, Any] = {}
        self.heard = False

    def __enter__(self) -> StopOnSignal:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background shells ignore on purpose
                self.previous[number] = signal.signal(number, self.hear)
        return self

    def __exit__(self, *fault: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.end_driver()

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.heard:
            self.console.print("killing the run")
            self.end_driver()
            return
        self.heard = True
        self.run.stop_path.touch()
        self.console.print("stopping after this step and a checkpoint; once more kills the run")

    def end_driver(self) -> None:
        """Take the run down: the driver ends its workers and its Ray; if it cannot, the kernel does."""
        if self.driver is None or self.driver.poll() is not None:
            return
        self.driver.terminate()
        try:
            self.driver.wait(TAKE_DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self.driver.kill()


def conclude(run: RunFolder, code: int, console: Console) -> int:
    """Say how the run ended and what to do next; returns the exit code."""
    state = run.read_state()
    run.stop_path.unlink(missing_ok=True)
    if code == DONE:
        show_summary(run, console)
        return DONE
    if code == RESUME_ME:
        console.print(
            f"run {run.name} stopped after step {state.get('step', 0)}; go on with: ./launch.sh resume {run.name}", soft_wrap=True
        )
        return RESUME_ME
    if code == USER_ERROR:
        raise RunError(state.get("reason", f"the run could not start; see {run.logs / 'driver.log'}"))
    if state["state"] != "failed":
        run.change_state("failed", reason="the driver was killed")
        state = run.read_state()
    print(f"mootron: run {run.name} failed: {state.get('reason')}", file=sys.stderr)
    if checkpoint_steps(run):
        print(f"go on from its newest checkpoint with: ./launch.sh resume {run.name}", file=sys.stderr)
    else:
        print("it has no checkpoint yet: start it again with the same command", file=sys.stderr)
    return 1


def show_summary(run: RunFolder, console: Console) -> None:
    """The page of a finished run; a summary that cannot be shown does not make the run a failure."""
    from cluster.summary import print_summary

    try:
        print_summary(run, console)
    except USER_ERRORS as fault:
        console.print(f"run {run.name} finished; no summary: {fault}", soft_wrap=True)
