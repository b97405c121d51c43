"""What ranks run for test_collectives.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distributed import collectives
from distributed.topology import Topology, init_topology


def start(timeout_seconds: float = 30) -> Topology:
    return init_topology(1, device="cpu", timeout_seconds=timeout_seconds, use_deepspeed=False)


def one_of_each() -> dict[str, Any]:
    """Every synchronous collective once."""
    topology = start()
    before = collectives.progress.number
    with collectives.recorded_order() as order:
        collectives.barrier("first", topology)
        total = collectives.all_reduce("sum", torch.tensor([topology.rank, 1]), topology.world_group)
        gathered = collectives.all_gather("gathered", torch.tensor([topology.rank, 0.5]), topology.world_group)
        found = {name: collectives.any_rank(flag, topology, name) for name, flag in (("any", topology.rank == 2), ("none", False))}
    counted = collectives.progress.number - before
    last = collectives.progress.name
    return {"sum": total.tolist(), "gathered": gathered.tolist(), **found, "order": order, "counted": counted, "last": last}


def uneven_rows() -> list[list[float]]:
    """An all-to-all of r + d rows from rank r to rank d."""
    topology = start()
    counts = [topology.rank + other for other in range(topology.world)]
    send = torch.cat([torch.full((count, 2), 10.0 * topology.rank + receiver) for receiver, count in enumerate(counts)])
    receive = torch.full((sum(counts), 2), torch.nan)
    collectives.all_to_all("rows", send, receive, counts, counts, topology.world_group).wait()
    return receive.tolist()


def wait_for_an_absent_peer() -> str:
    """Rank 1 does not come until rank 0 has given up."""
    topology = start(timeout_seconds=1)
    store = dist.distributed_c10d._get_default_store()
    if topology.rank == 1:
        store.wait(["gave up"], timedelta(seconds=60))
        return ""
    try:
        collectives.all_reduce("lonely", torch.zeros(1), topology.world_group)
        message = "no error"
    except collectives.CollectiveError as fault:
        message = str(fault)
    store.set("gave up", "yes")
    return message
