"""Routes in expert order: the permutation that puts every expert's work in one contiguous run.

Shape suffixes: Q routes (one row sent to one expert), E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routes(NamedTuple):
    """`order_Q[ends_E[e-1]:ends_E[e]]` are the routes of expert e, in the order they came; both int64."""

    order_Q: Tensor
    ends_E: Tensor


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
