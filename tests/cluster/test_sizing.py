"""How many workers, and what each may use."""

from __future__ import annotations

import pytest

from cluster.errors import ClusterError
from cluster.group_plan import GroupPlan
from cluster.layouts import fit_expert_parallel
from cluster.sizing import plan_group
from distributed.cluster_config import ClusterConfig
from distributed.recipe import Recipe


def sized(recipe: Recipe, **cluster: object) -> Recipe:
    return recipe.model_copy(update={"cluster": ClusterConfig(**cluster)})  # type: ignore[arg-type]


def test_two_workers_share_a_machine_without_gpu(recipe: Recipe) -> None:
    plan = plan_group(recipe, cpus=2, gpus=0, shared=False)
    assert (plan.workers, plan.cpus_per_worker, plan.gpus_per_worker) == (2, 1.0, 0)
    assert plan_group(recipe, cpus=1, gpus=0, shared=False).cpus_per_worker == 1.0


def test_one_worker_a_gpu(recipe: Recipe) -> None:
    plan = plan_group(recipe, cpus=32, gpus=4, shared=False)
    assert (plan.workers, plan.cpus_per_worker, plan.gpus_per_worker) == (4, 8.0, 1)


def test_a_shared_cluster_is_not_taken_whole(recipe: Recipe) -> None:
    assert plan_group(sized(recipe, workers=2), cpus=64, gpus=0, shared=True).cpus_per_worker == 1.0
    assert plan_group(sized(recipe, cpus_per_worker=3), cpus=64, gpus=0, shared=True).cpus_per_worker == 3.0


def test_more_workers_than_gpus(recipe: Recipe) -> None:
    with pytest.raises(ClusterError, match=r"cluster.workers is 3 but there are 2 GPUs; choose cluster.workers=2"):
        plan_group(sized(recipe, workers=3), cpus=8, gpus=2, shared=False)


def test_nodes_take_equal_shares(recipe: Recipe) -> None:
    assert plan_group(sized(recipe, nodes=3), cpus=12, gpus=0, shared=True).workers == 6
    with pytest.raises(ClusterError, match=r"cluster.workers is 4.*cluster.nodes=3"):
        plan_group(sized(recipe, workers=4, nodes=3), cpus=12, gpus=0, shared=True)


def test_bundles() -> None:
    assert GroupPlan(2, 1.5).bundles() == ([{"CPU": 1.5}, {"CPU": 1.5}], "PACK")
    assert GroupPlan(4, 2.0, 1, nodes=2).bundles() == ([{"CPU": 4.0, "GPU": 2}] * 2, "STRICT_SPREAD")


@pytest.mark.parametrize(("size", "workers", "fits"), [(2, 1, 1), (2, 2, 2), (2, 4, 2), (8, 6, 6), (4, 3, 3)])
def test_expert_parallel_fits_fewer_workers(recipe: Recipe, size: int, workers: int, fits: int) -> None:
    wide = recipe.model_copy(update={"expert_parallel": recipe.expert_parallel.model_copy(update={"size": size})})
    assert fit_expert_parallel(wide, workers).expert_parallel.size == fits
