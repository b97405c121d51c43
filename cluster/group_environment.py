"""The order of ranks and what each finds in its environment: pure functions of the nodes' facts."""

from __future__ import annotations

import ipaddress
from collections import defaultdict

from cluster.preflight import PORT as PREFLIGHT_PORT
from cluster.rank_process import DEVICE_VARIABLES, NodeFacts


def rank_order(places: list[NodeFacts]) -> list[int]:
    """Positions in `places` by rank: nodes in order of their address, ranks of a node contiguous."""

    def key(position: int) -> tuple[int, str, int]:
        place = places[position]
        return int(ipaddress.ip_address(place.address)), place.node, position

    return sorted(range(len(places)), key=key)


def group_environment(places: list[NodeFacts], ports: tuple[int, int], cpus_per_worker: float) -> list[dict[str, str]]:
    """Environment of every rank; `places` in rank order, rank 0 listening on `ports` (the trainer's and the preflight's).

    Ranks of a node see all devices of the node's ranks, in rank order, so that LOCAL_RANK is the device's number
    and the ranks can reach each other's memory.
    """
    ranks_of: dict[str, list[int]] = defaultdict(list)
    for rank, place in enumerate(places):
        ranks_of[place.node].append(rank)
    return [_rank_environment(rank, places, ranks_of[place.node], ports, cpus_per_worker) for rank, place in enumerate(places)]


def _rank_environment(rank: int, places: list[NodeFacts], node_ranks: list[int], ports: tuple[int, int], cpus: float) -> dict[str, str]:
    place = places[rank]
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(places)),
        "LOCAL_RANK": str(node_ranks.index(rank)),
        "LOCAL_WORLD_SIZE": str(len(node_ranks)),
        "MASTER_ADDR": places[0].address,
        "MASTER_PORT": str(ports[0]),
        PREFLIGHT_PORT: str(ports[1]),
        "GLOO_SOCKET_IFNAME": place.interface,
        "NCCL_SOCKET_IFNAME": f"={place.interface}",  # without "=" NCCL takes every interface that begins so
        "OMP_NUM_THREADS": str(max(1, int(cpus))),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name in DEVICE_VARIABLES:
        devices = [places[other].devices.get(name, "") for other in node_ranks]
        if any(devices):
            environment[name] = ",".join(device for device in devices if device)
    return environment
