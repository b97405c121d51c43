"""What the workers do in test_topology.py and test_pool.py."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist

from distributed.collectives import barrier
from distributed.topology import init_topology


def groups(expert_parallel: int, table_parallel: int = 1) -> dict[str, Any]:
    """Who is in this rank's groups, told by the groups themselves."""
    topology = init_topology(expert_parallel, table_parallel=table_parallel, device="cpu", timeout_seconds=30, use_deepspeed=False)
    members = {}
    made = {"table_group": topology.tables.group, "table_data_group": topology.tables.data_group} if table_parallel > 1 else {}
    made |= {name: getattr(topology, name) for name in ("expert_group", "data_group", "world_group")}
    for name, group in made.items():
        ranks = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
        dist.all_gather(ranks, torch.tensor([topology.rank]), group=group)
        members[name] = [int(rank) for rank in ranks]
    return {"rank": topology.rank, "expert_rank": topology.expert_rank, **members}


def deepspeed_groups(expert_parallel: int, table_parallel: int = 1) -> dict[str, Any]:
    """The groups that DeepSpeed's own look-ups give, and whether they are the topology's."""
    from deepspeed.utils import groups as theirs

    topology = init_topology(expert_parallel, table_parallel=table_parallel, device="cpu", timeout_seconds=30, use_deepspeed=True)
    name, tables = f"ep_size_{table_parallel}", topology.tables
    same_tables = table_parallel == 1 or (
        theirs._get_expert_parallel_group(name) is tables.group and theirs._get_expert_data_parallel_group(name) is tables.data_group
    )
    name = f"ep_size_{expert_parallel}"
    return {
        "same_tables": same_tables,
        "same_expert": theirs._get_expert_parallel_group(name) is topology.expert_group,
        "same_data": theirs._get_expert_data_parallel_group(name) is topology.data_group,
        "same_world": theirs._clone_world_group() is topology.world_group,
        "expert": list(theirs._get_expert_parallel_group_ranks(name)),
        "data": list(theirs._get_expert_data_parallel_group_ranks(name)),
        "names": sorted(theirs._get_expert_parallel_group_dict()),
    }


def fail(rank: int, how: str) -> int:
    """One rank raises, dies or sleeps while the others wait for it in a collective."""
    topology = init_topology(1, device="cpu", timeout_seconds=30, use_deepspeed=False)
    if topology.rank == rank:
        if how == "raise":
            raise ValueError("the reason")
        if how == "die":
            os._exit(7)
        time.sleep(600)
    barrier("the meeting", topology)
    return topology.rank


def environment() -> dict[str, str]:
    """The launcher's variables that this rank sees."""
    return {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
