"""Keeps a run going: starts its group, and after every end decides what is next, until the run has ended.

Decisions are pure functions elsewhere: which layout (layouts.py), whether and when to start again (restarts.py), who hangs
(hang_watch.py). Resuming needs nothing from here: a rank takes the newest whole checkpoint of the run folder.
"""

from __future__ import annotations

import sys
import time

from cluster.errors import USER_ERRORS
from cluster.events import RunEvent, append_event, read_events, since_launch
from cluster.exit_codes import DONE, FAILED, RESUME_ME, USER_ERROR
from cluster.failures import Failure
from cluster.group_plan import GroupPlan
from cluster.group_watch import GroupWatch
from cluster.head_watch import HeadLost, head_answers
from cluster.layouts import Layout, largest_expert_parallel
from cluster.placement import PlacementLost
from cluster.places import Places
from cluster.recovery import Recovery
from cluster.restarts import decide
from cluster.worker import EXPERT_PARALLEL
from cluster.worker_group import HostUnfit, WorkerGroup
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder


class Supervisor:
    """One run under a Ray that is initialised.

    Args:
        plan: the group as it was asked for.
        arguments: of cluster/worker.py for every rank, without --resume.
        resume: whether the first group goes on from a checkpoint; later ones always do.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, plan: GroupPlan, arguments: tuple[str, ...], resume: bool) -> None:
        self.run, self.recipe, self.plan, self.arguments, self.resume = run, recipe, plan, arguments, resume
        self.config = recipe.cluster
        self.group = WorkerGroup(plan, run)
        self.recovery: Recovery | None = None
        self.places = Places(run, recipe, plan)
        self.trusted: set[str] = set()
        """Addresses of hosts that have trained in this run."""

    def supervise(self) -> int:
        """Run to the end; returns the exit code, and leaves the reason in state.json."""
        workers = self.plan.workers
        layout: Layout | None = Layout(workers, largest_expert_parallel(self.recipe, workers) or self.recipe.expert_parallel.size)
        lost = [event for event in since_launch(read_events(self.run)) if event.kind == "driver lost"]
        if lost:
            self.recovery = Recovery(lost[-1].time, lost[-1].step or 0)
            layout = self._await_layout()
        while layout is not None:
            ended = self._run_group(layout)
            if isinstance(ended, Failure):
                code = self._verdict(ended)
                if code is not None:
                    return code
                layout = self._next_layout(layout)
            elif ended == "regroup" and not self.run.stop_path.exists():
                layout = self._regroup(layout)
            else:
                return self._conclude(ended)
            self.resume = True
        if self.run.stop_path.exists():
            return self._fail("it was asked to stop while it waited for room in the cluster; its newest checkpoint is whole")
        return self._fail(f"no allowed layout fits what is left of the cluster within {self.plan.timeout_seconds:.0f} s; {self._bounds()}")

    def kill(self) -> None:
        """Take the group down."""
        self.group.kill()

    def _run_group(self, layout: Layout) -> str | Failure:
        """Start a group and follow it to its end; its processes are gone when this returns."""
        self.run.regroup_path.unlink(missing_ok=True)
        self.run.change_state("starting", world=layout.world, expert_parallel=layout.expert_parallel)
        append_event(self.run, RunEvent("started", world=layout.world, expert_parallel=layout.expert_parallel))
        began = time.time()
        try:
            self._start(layout)
        except USER_ERRORS as fault:
            if not self.recovery and not self.trusted and not isinstance(fault, PlacementLost):
                raise  # the first group cannot be had: what was asked for does not fit
            self.places.unfit |= fault.addresses if isinstance(fault, HostUnfit) else set()
            failure = Failure("not placed", time.time(), str(fault), str(fault))
            self._note(failure, layout, None, began)
            self.group.kill()
            return failure
        print(f"group of {layout}", flush=True)
        for rank, place in enumerate(self.group.places):
            print(f"rank {rank} on {place.host} ({place.address}, {place.interface}, {place.cores} cores)", flush=True)
        watch = GroupWatch(self.run, self.config, self.group, layout, self.recovery, lambda: self.places.larger(layout, self.group.held()))
        ended = watch.follow()
        self.recovery = watch.recovery
        if watch.in_training:
            self.trusted |= {place.address for place in self.group.places}
        if isinstance(ended, Failure):
            self._note(ended, layout, watch.step, began)
        return ended

    def _start(self, layout: Layout) -> None:
        arguments = (*self.arguments, "--resume") if self.resume else self.arguments
        rooms = self.places.rooms_without_left_out(self.group.held())
        if self.recovery:
            self.recovery.mark("decide and wait", time.time())
        self.group.start(arguments, {EXPERT_PARALLEL: str(layout.expert_parallel)}, rooms=rooms)
        if self.recovery:
            self.recovery.mark("start processes", time.time())

    def _note(self, failure: Failure, layout: Layout, step: int | None, began: float) -> None:
        """Write the failure down and end what is left of the group, at once."""
        whole = self.group.end_ranks()
        now = time.time()
        if self.recovery is None:
            self.recovery = Recovery(failure.time, step or 0)
        self.recovery.failed_again(step)
        self.recovery.mark("notice and end the group", now)
        host, address = (failure.place.host, failure.place.address) if failure.place else (None, None)
        event = RunEvent(
            failure.kind,
            now,
            failure.rank,
            host,
            address,
            step,
            failure.message,
            failure.signature,
            layout.world,
            layout.expert_parallel,
            seconds=failure.time - began,
        )
        append_event(self.run, event)
        print(failure.message, file=sys.stderr, flush=True)
        if not whole or failure.lost:
            if not head_answers():
                raise HeadLost
            self._replace_group()

    def _verdict(self, failure: Failure) -> int | None:
        """The exit code if the run ends here; else None, after the wait that is due."""
        newcomers = {place.address for place in self.group.places} - self.trusted
        if failure.users_mistake and self.trusted and newcomers:
            self.places.unfit |= newcomers
            for address in newcomers:
                append_event(self.run, RunEvent("left out", address=address, host=address, reason=failure.reason))
            return None
        if failure.users_mistake:
            return self._fail(failure.message, USER_ERROR)
        decision = decide(since_launch(read_events(self.run)), self.config.max_failures_an_hour, time.time())
        if not decision.go_on:
            return self._fail(f"{decision.reason}; the last: {failure.message}")
        if self.run.wait_unless_stopped(decision.wait_seconds):
            return None
        return self._fail(f"it was asked to stop, and failed before it could: {failure.message}")

    def _next_layout(self, layout: Layout) -> Layout | None:
        """What to run after a failure: the same places if they are whole, else what fits now."""
        if self.group.actors and not {place.address for place in self.group.places} & self.places.left_out(self.group.held()):
            return layout
        self._replace_group()
        return self._await_layout()

    def _regroup(self, layout: Layout) -> Layout:
        larger = self.places.larger(layout, self.group.held())
        if larger is None:
            return layout  # the room has gone again; the places are whole
        self._replace_group()
        self.group = WorkerGroup(self.plan.resized(larger.world), self.run)
        return larger

    def _await_layout(self) -> Layout | None:
        layout = self.places.await_layout()
        if layout:
            self.group = WorkerGroup(self.plan.resized(layout.world), self.run)
        return layout

    def _replace_group(self) -> None:
        self.group.kill()
        self.group = WorkerGroup(self.plan, self.run)

    def _bounds(self) -> str:
        config = self.config
        tables = self.recipe.table_parallel.size
        cut = f", table_parallel.size {tables}, which must divide the workers" if tables > 1 else ""
        return f"cluster.min_workers is {config.min_workers}, train.global_batch {self.recipe.train.global_batch}{cut}"

    def _conclude(self, result: str) -> int:
        """The state of a run whose ranks all gave a result. A group that ended to grow while a stop was asked for has stopped."""
        state = "stopped" if result == "regroup" else result
        if self.run.read_state()["state"] != state:
            self.run.change_state(state)
        return RESUME_ME if state == "stopped" else DONE

    def _fail(self, reason: str, code: int = FAILED) -> int:
        fail(self.run, reason)
        return code


def fail(run: RunFolder, reason: str) -> None:
    """Set the state `failed`, keeping the last figures."""
    print(reason, file=sys.stderr, flush=True)
    run.change_state("failed", reason=reason)
