"""Where the actors of a group live: asks Ray for the places and waits until it has them."""

from __future__ import annotations

import time
from typing import Any

from cluster.errors import ClusterError
from cluster.group_plan import GroupPlan
from cluster.rank_process import RankProcess

LOOK_SECONDS = 3.0


class PlacementLost(ClusterError):
    """A worker or its node went away before its rank began: the supervisor may place the group again."""


def reserve(plan: GroupPlan, rooms: dict[str, int] | None) -> Any:
    """A placement group that Ray has made room for.

    Args:
        rooms: only nodes with these addresses, holding so many workers each (None: wherever Ray places them).

    Raises:
        ClusterError: there is no room within `plan.timeout_seconds`.
        PlacementLost: a node died meanwhile, so what was chosen for the nodes there were may no longer fit.
    """
    import ray

    bundles, strategy = plan.bundles() if rooms is None else plan.pinned_bundles(rooms)
    placement = ray.util.placement_group(bundles, strategy=strategy)
    deadline, nodes = time.monotonic() + plan.timeout_seconds, _living_nodes()
    try:
        while not placement.wait(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic()))):
            if nodes - _living_nodes():
                raise PlacementLost("a node was lost while the group was being placed")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the cluster could not place {len(bundles)} x {bundles[0]} ({strategy}) within {plan.timeout_seconds:.0f} s; "
                    f"it has {_amounts(ray.available_resources())} free of {_amounts(ray.cluster_resources())}; "
                    "lower cluster.workers or cluster.cpus_per_worker, or add nodes"
                )
    except BaseException:
        ray.util.remove_placement_group(placement)
        raise
    return placement


def make_actors(plan: GroupPlan, placement: Any, run_path: str) -> list[Any]:
    """The actors of all ranks in their places, in no order yet."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    kind, n_bundles = ray.remote(RankProcess), len(placement.bundle_specs)
    actors = []
    for worker in range(plan.workers):
        bundle = worker * n_bundles // plan.workers
        options = kind.options(
            num_cpus=plan.cpus_per_worker,
            num_gpus=plan.gpus_per_worker,
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=bundle),
        )
        actors.append(options.remote(run_path))
    return actors


def _living_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _amounts(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amounts.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
