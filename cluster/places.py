"""What of the cluster a run may use now, and the best layout for it."""

from __future__ import annotations

import time
from collections import Counter

from cluster.events import read_events, since_launch
from cluster.group_plan import GroupPlan
from cluster.layouts import Layout, best_layout
from cluster.restarts import hosts_to_leave_out
from cluster.room import NodeRoom, cluster_room, workers_that_fit
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

LOOK_SECONDS = 1.0


class Places:
    """The nodes of the Ray that this process is connected to, less those that failed too often or could not take part.

    Args:
        plan: the group as it was asked for.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, plan: GroupPlan) -> None:
        self.run, self.recipe, self.plan, self.config = run, recipe, plan, recipe.cluster
        self.unfit: set[str] = set()
        """Addresses of hosts that joined and could not take part."""

    def larger(self, layout: Layout, held: Counter[str]) -> Layout | None:
        """A layout of more workers than `layout` that would fit now. `held`: our workers by node id."""
        best = self._best(held)
        return best if best and best.world > layout.world else None

    def await_layout(self) -> Layout | None:
        """The best layout that the cluster can hold, as soon as it can hold one; None when it cannot in time.

        One that is smaller than asked for must be the best at two looks in a row: what a dead group held comes back a
        moment later.
        """
        deadline, before = time.monotonic() + self.plan.timeout_seconds, None
        while True:
            layout = self._best(Counter())
            if layout and (layout == before or layout.world >= self.plan.workers):
                return layout
            if time.monotonic() > deadline or self.run.stop_path.exists():
                return None
            before = layout
            time.sleep(LOOK_SECONDS)

    def left_out(self, held: Counter[str]) -> set[str]:
        """Addresses of hosts to do without, unless nothing can run without them."""
        return self._left_out(cluster_room(held, self.plan))

    def rooms_without_left_out(self, held: Counter[str]) -> dict[str, int] | None:
        """Workers that fit, by address; None where no host is left out and Ray may place them freely."""
        nodes = cluster_room(held, self.plan)
        left_out = self._left_out(nodes)
        return {node.address: node.workers(self.plan) for node in nodes if node.address not in left_out} if left_out else None

    def _best(self, held: Counter[str]) -> Layout | None:
        nodes = cluster_room(held, self.plan)
        most = max(self.config.max_workers or self.plan.workers, self.config.min_workers)
        return self._fitting(nodes, self._left_out(nodes), most)

    def _left_out(self, nodes: list[NodeRoom]) -> set[str]:
        events = since_launch(read_events(self.run))
        left_out = self.unfit | hosts_to_leave_out(events, self.config.max_failures_a_host, time.time())
        return left_out if left_out and self._fitting(nodes, left_out, self.plan.workers) else set()

    def _fitting(self, nodes: list[NodeRoom], left_out: set[str], most: int) -> Layout | None:
        room = workers_that_fit(nodes, self.plan, left_out)
        return best_layout(self.recipe, room, self.config.min_workers, most, self.plan.workers_per_node or 1)
