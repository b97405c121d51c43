"""A worker group of fixed size: plain Ray actors in a placement group, one process a rank.

Plain actors and not Ray Train: our supervisor owns the world size and the restarts, and resuming never depends on
Ray's memory of a run, so nothing of what Ray Train adds would be used.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from cluster.errors import USER_ERRORS, ClusterError
from cluster.group_environment import group_environment, rank_order
from cluster.rank_process import NodeFacts, Outcome, RankProcess, RankTask
from distributed.run_folder import RunFolder

POLL_SECONDS = 0.3
ANSWER_SECONDS = 60.0  # an actor on a living node answers in milliseconds


@dataclass(frozen=True)
class GroupPlan:
    """How many workers and what each is given; `nodes`: spread evenly over so many nodes (None: wherever they fit)."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int = 0
    nodes: int | None = None
    timeout_seconds: float = 600.0

    def bundles(self) -> tuple[list[dict[str, float]], str]:
        """Ray's resource bundles and placement strategy."""
        per_bundle = self.workers // self.nodes if self.nodes else 1
        bundle = {"CPU": self.cpus_per_worker * per_bundle}
        if self.gpus_per_worker:
            bundle["GPU"] = self.gpus_per_worker * per_bundle
        if self.nodes:
            return [bundle] * self.nodes, "STRICT_SPREAD"
        return [bundle] * self.workers, "PACK"


class WorkerGroup:
    """Start with `start`, then `wait`; `kill` at the end in any case. Ray is initialised by the caller."""

    def __init__(self, plan: GroupPlan, run: RunFolder) -> None:
        self.plan = plan
        self.run = run
        self.actors: list[Any] = []
        self.places: list[NodeFacts] = []
        self.placement: Any = None

    def start(self, arguments: tuple[str, ...]) -> None:
        """Place the actors and start every rank's process with `arguments` for cluster/worker.py.

        Raises:
            ClusterError: the cluster cannot hold the group, or a node does not see the run's folder.
        """
        import ray

        self._place()
        places = self._gather([actor.facts.remote() for actor in self.actors])
        order = rank_order(places)
        self.actors = [self.actors[position] for position in order]
        self.places = [places[position] for position in order]
        self._check_folder()
        port = ray.get(self.actors[0].free_port.remote(self.places[0].address))
        environments = group_environment(self.places, port, self.plan.cpus_per_worker)
        tasks = [RankTask(rank, environment, arguments) for rank, environment in enumerate(environments)]
        self._gather([actor.start.remote(task) for actor, task in zip(self.actors, tasks, strict=True)])

    def wait(self) -> list[Outcome]:
        """Outcomes by rank once all have a result, or as soon as one has failed: then only of those that have ended."""
        while True:
            ended = [outcome for outcome in self.poll() if outcome is not None]
            if len(ended) == len(self.actors) or any(outcome.result is None for outcome in ended):
                return ended
            time.sleep(POLL_SECONDS)

    def poll(self) -> list[Outcome | None]:
        """How each rank ended so far; a rank whose actor is gone or silent counts as failed."""
        asked = [actor.poll.remote() for actor in self.actors]
        return [self._answer(rank, reference) for rank, reference in enumerate(asked)]

    def kill(self) -> None:
        """End every process of the group and give its resources back."""
        import ray

        asked = [actor.kill.remote() for actor in self.actors]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=5.0)
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        self.actors = []
        if self.placement is not None:
            ray.util.remove_placement_group(self.placement)
            self.placement = None

    def _place(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundles, strategy = self.plan.bundles()
        self.placement = ray.util.placement_group(bundles, strategy=strategy)
        if not self.placement.wait(self.plan.timeout_seconds):
            raise ClusterError(
                f"the cluster could not place {len(bundles)} x {bundles[0]} ({strategy}) within {self.plan.timeout_seconds:.0f} s; "
                f"it has {_resources(ray.available_resources())} free of {_resources(ray.cluster_resources())}; "
                "lower cluster.workers or cluster.cpus_per_worker, or add nodes"
            )
        kind = ray.remote(RankProcess)
        for worker in range(self.plan.workers):
            bundle = worker * len(bundles) // self.plan.workers
            options = kind.options(
                num_cpus=self.plan.cpus_per_worker,
                num_gpus=self.plan.gpus_per_worker,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.placement, placement_group_bundle_index=bundle),
            )
            self.actors.append(options.remote(str(self.run.path)))

    def _gather(self, references: list[Any]) -> list[Any]:
        import ray

        try:
            return list(ray.get(references, timeout=self.plan.timeout_seconds))
        except ray.exceptions.RayTaskError as fault:
            raise (fault.cause if isinstance(fault.cause, USER_ERRORS) else fault) from None
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as fault:
            raise ClusterError(f"a worker could not be started: {fault}; ./launch.sh doctor looks for the cause") from None

    def _check_folder(self) -> None:
        blind = sorted({place.host for place in self.places if not place.sees_run})
        if blind:
            raise ClusterError(
                f"run folder {self.run.path} is not visible on {', '.join(blind)}; "
                "set MOOTRON_HOME to a folder that all nodes share, under the same path"
            )

    def _answer(self, rank: int, reference: Any) -> Outcome | None:
        import ray

        try:
            outcome: Outcome | None = ray.get(reference, timeout=ANSWER_SECONDS)
            return outcome
        except ray.exceptions.RayActorError:
            error = "its Ray actor died: the node was lost or ran out of memory"
        except ray.exceptions.GetTimeoutError:
            error = f"its node did not answer for {ANSWER_SECONDS:.0f} s"
        return Outcome(rank, self.places[rank].host, time.time(), error=error)


def _resources(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amounts.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
