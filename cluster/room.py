"""How many workers the cluster could hold: what its living nodes have free, and what our own workers hold of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from cluster.group_plan import GroupPlan

_ROUNDING = 1e-6  # thirds of a CPU do not add up to one exactly


@dataclass(frozen=True)
class NodeRoom:
    """A living node: what a run of ours could use there, workers that it holds now counted as free."""

    address: str
    cpus: float
    gpus: float

    def workers(self, plan: GroupPlan) -> int:
        """How many workers fit."""
        fit = int(self.cpus / plan.cpus_per_worker + _ROUNDING)
        return min(fit, int(self.gpus / plan.gpus_per_worker + _ROUNDING)) if plan.gpus_per_worker else fit


def workers_that_fit(nodes: list[NodeRoom], plan: GroupPlan, left_out: set[str]) -> int:
    """Workers over all nodes but those at `left_out`; with `plan.nodes` the same number on every node that can hold it."""
    fits = [node.workers(plan) for node in nodes if node.address not in left_out]
    per_node = plan.workers_per_node
    return sum(fit >= per_node for fit in fits) * per_node if per_node else sum(fits)


def cluster_room(held: Counter[str], plan: GroupPlan) -> list[NodeRoom]:
    """The living nodes of the Ray that this process is connected to. `held`: our workers by node id."""
    import ray
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, Any]] = available_resources_per_node()
    rooms = []
    for node in ray.nodes():
        if node["Alive"]:
            name, own = node["NodeID"], held[node["NodeID"]]
            has = free.get(name, {})
            cpus = min(has.get("CPU", 0.0) + own * plan.cpus_per_worker, node["Resources"].get("CPU", 0.0))
            gpus = min(has.get("GPU", 0.0) + own * plan.gpus_per_worker, node["Resources"].get("GPU", 0.0))
            rooms.append(NodeRoom(node["NodeManagerAddress"], cpus, gpus))
    return rooms
