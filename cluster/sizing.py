"""How many workers a run gets and what each may use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cluster.errors import ClusterError
from cluster.group_plan import GroupPlan
from distributed.recipe import Recipe

WORKERS_WITHOUT_GPU = 2
CPUS_ON_SHARED_CLUSTER = 1.0


def local_gpus() -> int:
    """GPUs of this machine that torch can use (NVIDIA or AMD); torch is asked only where there is a sign of one."""
    signs = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
    if not any(sign.exists() for sign in signs) and shutil.which("nvidia-smi") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def plan_group(recipe: Recipe, cpus: int, gpus: int, shared: bool) -> GroupPlan:
    """The worker group for a recipe on `cpus` and `gpus` (of the whole cluster; `shared`: others use it too).

    Raises:
        ClusterError: more workers than GPUs, or workers that the nodes cannot share equally.
    """
    wanted = recipe.cluster
    workers = wanted.workers or gpus or WORKERS_WITHOUT_GPU * (wanted.nodes or 1)
    if gpus and workers > gpus:
        raise ClusterError(
            f"cluster.workers is {workers} but there are {gpus} GPUs; choose cluster.workers={gpus} or fewer, "
            "or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    if wanted.nodes and workers % wanted.nodes:
        raise ClusterError(f"cluster.workers is {workers}, which cluster.nodes={wanted.nodes} cannot share equally; choose a multiple")
    equal_share = max(cpus, workers) / workers
    return GroupPlan(
        workers=workers,
        cpus_per_worker=wanted.cpus_per_worker or (CPUS_ON_SHARED_CLUSTER if shared else equal_share),
        gpus_per_worker=1 if gpus else 0,
        nodes=wanted.nodes,
        timeout_seconds=wanted.timeout_seconds,
    )


def plan_run(recipe: Recipe) -> GroupPlan:
    """The group on this machine, or on the cluster at `cluster.address` (then Ray is started and left again)."""
    if recipe.cluster.address is None:
        return plan_group(recipe, os.cpu_count() or 1, local_gpus(), shared=False)
    from cluster.ray_session import ray_session

    with ray_session(recipe.cluster.address):
        import ray

        amounts = ray.cluster_resources()
    return plan_group(recipe, int(amounts.get("CPU", 0)), int(amounts.get("GPU", 0)), shared=True)
