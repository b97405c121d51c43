"""A group of ranks: plain Ray actors in a placement group, one process a rank.

Plain actors and not Ray Train: our supervisor owns the world size and the restarts, and resuming never depends on
Ray's memory of a run, so nothing of what Ray Train adds would be used. The actors outlive a failed rank: a restart at the
same places is new rank processes under the same actors.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from cluster.child import Outcome
from cluster.errors import USER_ERRORS, ClusterError
from cluster.group_environment import group_environment, rank_order
from cluster.group_plan import GroupPlan
from cluster.placement import PlacementLost, make_actors, reserve
from cluster.rank_process import NodeFacts, RankReport, RankTask
from distributed.run_folder import RunFolder

POLL_SECONDS = 0.2
ANSWER_SECONDS = 60.0  # an actor on a living node answers in milliseconds
LATE_SECONDS = 3.0
KILL_SECONDS = 5.0


class WorkerGroup:
    """`start`, `poll` until it ends, `end_ranks`, perhaps `start` again; `kill` at the end in any case.

    Ray is initialised by the caller.
    """

    def __init__(self, plan: GroupPlan, run: RunFolder) -> None:
        self.plan = plan
        self.run = run
        self.actors: list[Any] = []
        self.places: list[NodeFacts] = []
        self.placement: Any = None
        self._asked: list[Any] = []
        self._heard: list[float] = []
        self._last: list[RankReport] = []

    def start(
        self,
        arguments: tuple[str, ...],
        environment: dict[str, str] | None = None,
        *,
        rooms: dict[str, int] | None = None,
    ) -> None:
        """Place the actors if they are not yet, and start every rank's process with `arguments` for cluster/worker.py.

        Args:
            environment: of all ranks, on top of their own.
            rooms: only nodes with these addresses, holding so many workers each (None: wherever Ray places them).

        Raises:
            ClusterError: the cluster cannot hold the group, or a node does not see the run's folder.
        """
        if not self.actors:
            self.placement = reserve(self.plan, rooms)
            self.actors = make_actors(self.plan, self.placement, str(self.run.path))
            self._order_ranks()
        first = self.places[0]
        (ports,) = self._gather([self.actors[0].free_ports.remote(first.address, 2)])
        environments = group_environment(self.places, tuple(ports), self.plan.cpus_per_worker)
        servers = self._fork_servers(environments, arguments)
        tasks = [
            RankTask(rank, {**own, **(environment or {})}, arguments, server)
            for rank, (own, server) in enumerate(zip(environments, servers, strict=True))
        ]
        self._gather([actor.start.remote(task) for actor, task in zip(self.actors, tasks, strict=True)])
        self._asked = [None] * len(self.actors)
        self._heard = [time.monotonic()] * len(self.actors)
        self._last = [RankReport(rank) for rank in range(len(self.actors))]

    def poll(self) -> list[RankReport]:
        """How every rank stands; returns within POLL_SECONDS. A rank whose actor is gone or long silent counts as lost."""
        import ray

        self._asked = [asked or actor.report.remote() for asked, actor in zip(self._asked, self.actors, strict=True)]
        answered, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=POLL_SECONDS)
        for rank, reference in enumerate(self._asked):
            if reference in answered:
                self._asked[rank] = None
                self._heard[rank] = time.monotonic()
                self._last[rank] = self._answer(rank, reference)
            else:
                self._last[rank] = self._unanswered(rank, time.monotonic() - self._heard[rank])
        return list(self._last)

    def ask_for_stack(self, rank: int) -> None:
        """Let a rank write its threads' stacks to its log; not waited for."""
        self.actors[rank].ask_for_stack.remote()

    def end_ranks(self) -> bool:
        """End every rank's process; the actors stay. Whether all of them answered: then `start` may follow."""
        import ray

        asked = [actor.kill.remote() for actor in self.actors]
        answered, silent = ray.wait(asked, num_returns=len(asked), timeout=KILL_SECONDS) if asked else ([], [])
        try:
            ray.get(answered)
        except ray.exceptions.RayError:
            return False
        return not silent

    def held(self) -> Counter[str]:
        """Workers by node id."""
        return Counter(place.node for place in self.places)

    def kill(self) -> None:
        """End every process of the group and give its resources back."""
        import ray

        self.end_ranks()  # each by its own actor, with what it started, before the fork servers go
        asked = [actor.close.remote() for actor in self.actors]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=KILL_SECONDS)
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        self.actors, self.places = [], []
        if self.placement is not None:
            ray.util.remove_placement_group(self.placement)
            self.placement = None

    def _fork_servers(self, environments: list[dict[str, str]], arguments: tuple[str, ...]) -> list[str]:
        """Where every rank's node has its fork server, which the node's first rank keeps."""
        first = {place.node: rank for rank, place in reversed(list(enumerate(self.places)))}
        addresses = self._gather([self.actors[rank].serve_forks.remote(environments[rank], arguments) for rank in first.values()])
        by_node = dict(zip(first, addresses, strict=True))
        return [by_node[place.node] for place in self.places]

    def _order_ranks(self) -> None:
        places = self._gather([actor.facts.remote() for actor in self.actors])
        order = rank_order(places)
        self.actors = [self.actors[position] for position in order]
        self.places = [places[position] for position in order]
        blind = [place for place in self.places if not place.sees_run]
        if blind:
            raise HostUnfit(
                f"run folder {self.run.path} is not visible on {', '.join(sorted({place.host for place in blind}))}; "
                "set MOOTRON_HOME to a folder that all nodes share, under the same path",
                {place.address for place in blind},
            )

    def _gather(self, references: list[Any]) -> list[Any]:
        import ray

        try:
            return list(ray.get(references, timeout=self.plan.timeout_seconds))
        except ray.exceptions.RayTaskError as fault:
            raise (fault.cause if isinstance(fault.cause, USER_ERRORS) else fault) from None
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as fault:
            raise PlacementLost(f"a worker could not be started: {fault}; ./launch.sh doctor looks for the cause") from None

    def _answer(self, rank: int, reference: Any) -> RankReport:
        import ray

        try:
            report: RankReport = ray.get(reference)
            return report
        except ray.exceptions.RayActorError:
            return self._lost(rank, "its Ray actor died: the node was lost or ran out of memory")

    def _unanswered(self, rank: int, seconds: float) -> RankReport:
        if seconds > ANSWER_SECONDS:
            return self._lost(rank, f"its node did not answer for {ANSWER_SECONDS:.0f} s")
        last = self._last[rank]
        return RankReport(rank, last.outcome, last.pulse, last.pulse_age, last.stopped, heard=seconds < LATE_SECONDS)

    def _lost(self, rank: int, error: str) -> RankReport:
        last = self._last[rank]
        if last.outcome:
            return last
        return RankReport(rank, Outcome(rank, self.places[rank].host, time.time(), error=error, lost=True), last.pulse, heard=False)


class HostUnfit(ClusterError):
    """Hosts, by address, that cannot take part in the run."""

    def __init__(self, message: str, addresses: set[str]) -> None:
        super().__init__(message)
        self.addresses = addresses
