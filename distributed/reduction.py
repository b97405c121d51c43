"""Many figures, one collective: named tensors travel as one fp64 vector and come back summed over the ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed import collectives
from distributed.topology import Topology


def sum_over_ranks(figures: dict[str, Tensor], topology: Topology, name: str) -> dict[str, Tensor]:
    """Sum every tensor over all ranks; the results lie on the host in fp64 (counts are exact below 2**53).

    Names and shapes must be equal on all ranks. This is the one moment at which the host waits for the device.

    Args:
        figures: tensors on any device.
        topology: whose world is summed over; no collective when it is one rank.
        name: what the collective is called in its log.
    """
    flat = torch.cat([figure.detach().to(topology.device, torch.float64).reshape(-1) for figure in figures.values()])
    if topology.world > 1:
        collectives.all_reduce(name, flat, topology.world_group)
    pieces = flat.cpu().split([figure.numel() for figure in figures.values()])
    return {key: piece.view(figure.shape) for (key, figure), piece in zip(figures.items(), pieces, strict=True)}


def rank_slots(values: list[float], topology: Topology) -> Tensor:
    """[world, n] with this rank's values in its own row: summed over the ranks, the rows of all."""
    slots = torch.zeros(topology.world, len(values), dtype=torch.float64)
    slots[topology.rank] = torch.tensor(values, dtype=torch.float64)
    return slots
