"""How evenly experts and ranks are used, from counts of routes.

Counts are gathered on the device (`LoadCounter`) and judged on the host, once a logging interval (the plain functions).

Shape suffixes: V visits with routed experts, E experts, R expert-parallel ranks, W ranks of the world; T tokens, H heads, K slots a
head, N slots of a product-key layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from distributed.dispatch_plan import owner_bounds
from kernels.rows import add_rows


def routes_by_owner(loads_VE: Tensor, expert_parallel: int) -> Tensor:
    """[V, R]: how many of a rank's routes go to each rank of its expert-parallel group."""
    cuts = owner_bounds(loads_VE.shape[1], expert_parallel)
    return torch.stack([loads_VE[:, start:stop].sum(dim=1) for start, stop in pairwise(cuts)], dim=1)


def dead_share(loads_VE: Tensor) -> Tensor:
    """[V]: the share of experts that no token chose."""
    return (loads_VE == 0).double().mean(dim=1)


def never_used_share(loads_VE: Tensor, schedule: Sequence[int]) -> float:
    """The share of experts (of all routed layers) that no token chose in any visit; `schedule` names the layer of every row."""
    by_layer = [loads_VE[[visit for visit, at in enumerate(schedule) if at == layer]].sum(dim=0) for layer in sorted(set(schedule))]
    return (torch.stack(by_layer) == 0).double().mean().item()


def routing_entropy(loads_VE: Tensor) -> Tensor:
    """[V]: entropy of the distribution of routes over experts divided by ln E: 1 uniform, 0 one expert (or no route)."""
    n_experts = loads_VE.shape[1]
    if n_experts == 1:
        return torch.ones(loads_VE.shape[0], dtype=torch.float64)
    p_VE = loads_VE.double() / loads_VE.sum(dim=1, keepdim=True).clamp_min(1)
    return -torch.special.xlogy(p_VE, p_VE).sum(dim=1) / math.log(n_experts)


def imbalance(counts: Tensor) -> Tensor:
    """Largest over mean along the first dimension: 1 is even, n means one of n has all. 1 where there is nothing."""
    mean = counts.double().mean(dim=0)
    largest = counts.double().amax(dim=0)
    return torch.where(mean > 0, largest / mean.clamp_min(torch.finfo(torch.float64).tiny), torch.ones_like(mean))


def relative_load(loads_VE: Tensor) -> Tensor:
    """[V, E]: an expert's routes over the mean of its visit; 1 is the even share."""
    mean_V1 = loads_VE.double().mean(dim=1, keepdim=True)
    return loads_VE.double() / mean_V1.clamp_min(torch.finfo(torch.float64).tiny)


class LoadCounter:
    """Adds up routes an expert and visit on the device; nothing is read by the host before `take`."""

    def __init__(self, n_visits: int, n_experts: int, device: torch.device) -> None:
        self._loads_VE = torch.zeros(n_visits, n_experts, dtype=torch.int64, device=device)

    def add(self, loads: Sequence[Tensor]) -> None:
        """Add one micro-batch: a list over visits with routed experts of int64 [E]."""
        if loads:
            self._loads_VE += torch.stack(tuple(loads))

    def take(self) -> Tensor:
        """The counts [V, E] since the last call, still on the device."""
        taken = self._loads_VE
        self._loads_VE = torch.zeros_like(taken)
        return taken


def gate_mass(slot_THK: Tensor, gate_THK: Tensor, n_slots: int) -> Tensor:
    """[N] float64: the gates that every slot of a product-key layer got, summed over tokens, heads and picks.

    A visit's record holds the arguments, `["feed_forward"]` and `["gates"]["feed_forward"]`; masses of micro-batches add up.
    """
    mass_N = torch.zeros(n_slots, dtype=torch.float64, device=slot_THK.device)
    add_rows(mass_N[:, None], slot_THK.flatten(), gate_THK.flatten()[:, None])
    return mass_N


def used_share(mass_N: Tensor) -> float:
    """Expert usage (arXiv 2407.04153, table 2): the share of slots that got any gate over a whole evaluation."""
    return (mass_N != 0).double().mean().item()


def unevenness(mass_N: Tensor) -> float:
    """KL of gates over slots to uniform, ln N + sum z ln z, nats (same table): 0 even, ln N one slot; 0 where no gate was."""
    total = mass_N.sum(dtype=torch.float64)
    if total == 0:
        return 0.0
    z_N = mass_N.double() / total
    return (math.log(len(mass_N)) + torch.special.xlogy(z_N, z_N).sum()).item()
