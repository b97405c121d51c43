"""Routes in expert order: the permutation that puts every expert's work in one contiguous run, and its cuts.

Shape suffixes: Q routes (one row sent to one expert), E experts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# Rows gathered at a time on a CPU: their copies then stay in the cache, and the allocator hands the same memory out
# again, where an array of all routes would be mapped and faulted in page by page on every call.
ROUTES_A_CHUNK = 1024


class Routes(NamedTuple):
    """`order_Q[ends_E[e-1]:ends_E[e]]` are the routes of expert e, in the order they came; both int64."""

    order_Q: Tensor
    ends_E: Tensor


class Chunk(NamedTuple):
    """Neighbouring experts worked on together: which experts, which routes in expert order, routes of each expert."""

    experts: slice
    routes: slice
    sizes: list[int]


def sort_routes(expert_Q: Tensor, n_experts: int) -> Routes:
    """Stable sort of routes by expert. No host read, and equal bits on every run.

    Args:
        expert_Q: int64 expert of each route, all in 0..n_experts-1.
        n_experts: how many experts there are; those without a route get an empty run.
    """
    sorted_Q, order_Q = torch.sort(expert_Q, stable=True)
    ends_E = torch.searchsorted(sorted_Q, torch.arange(n_experts, device=expert_Q.device), right=True)
    return Routes(order_Q, ends_E)


def sort_routes_reference(expert_Q: Tensor, n_experts: int) -> Routes:
    """`sort_routes`, an expert at a time."""
    runs = [(expert_Q == expert).nonzero().flatten() for expert in range(n_experts)]
    ends_E = torch.tensor([len(run) for run in runs], dtype=torch.int64, device=expert_Q.device).cumsum(0)
    return Routes(torch.cat([*runs, expert_Q.new_empty(0)]), ends_E)


def cut(ends_E: Tensor) -> list[Chunk]:
    """Whole experts in chunks of about `ROUTES_A_CHUNK` routes, all experts covered; one chunk on an accelerator.

    Reads `ends_E` to the host.
    """
    limit = ROUTES_A_CHUNK if ends_E.device.type == "cpu" else None
    ends = [0, *ends_E.tolist()]
    sizes = [stop - start for start, stop in pairwise(ends)]
    chunks, first = [], 0
    for expert in range(len(sizes)):
        full = limit is not None and ends[expert + 1] - ends[first] >= limit
        if full or expert + 1 == len(sizes):
            chunks.append(Chunk(slice(first, expert + 1), slice(ends[first], ends[expert + 1]), sizes[first : expert + 1]))
            first = expert + 1
    return chunks
