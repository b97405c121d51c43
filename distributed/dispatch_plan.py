"""Which row goes to which rank: the plan of one dispatch, made once and kept for the recomputation and the backward.

A token goes once to each rank that owns at least one of its experts. Rows are ordered by rank, then by token, and so
are routes; a route's code says which local expert it means and whether it is the first of its row, so the receiver
needs nothing else to know which row a route belongs to.

Shape suffixes: T tokens, K experts a token chose, M ranks, Q routes (token, expert), R rows sent (token, rank),
J answers a token can get (at most min(K, M)).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def owner_bounds(n_experts: int, size: int) -> list[int]:
    """Rank r of `size` owns experts bounds[r] .. bounds[r+1]-1: contiguous, uneven when it must be, maybe none."""
    return [n_experts * rank // size for rank in range(size + 1)]


def owned_experts(n_experts: int, size: int, rank: int) -> range:
    """Those of rank `rank` of `size`."""
    bounds = owner_bounds(n_experts, size)
    return range(bounds[rank], bounds[rank + 1])


@dataclass
class Routing:
    """A plan before its sizes are known to the host; the tensors stay on the device.

    order_Q: routes (t*K+k) by owner, then token. row_Q: the row a route travels with. code_Q: 2 * local expert + first.
    place_MT: the row of token t for rank m where `reached_MT`. counts_M2: rows and routes for each rank, int64.
    """

    order_Q: Tensor
    row_Q: Tensor
    code_Q: Tensor
    reached_MT: Tensor
    place_MT: Tensor
    counts_M2: Tensor


@dataclass
class Plan:
    """A dispatch with sizes: `token_R` is the token of each row sent, `slot_JT` the rows that answer a token.

    An unused slot holds R, one past the last row. The lists have one entry a rank.
    """

    order_Q: Tensor
    code_Q: Tensor
    token_R: Tensor
    slot_JT: Tensor
    sent_rows: list[int]
    sent_routes: list[int]
    received_rows: list[int]
    received_routes: list[int]


def route(expert_TK: Tensor, bounds: Tensor) -> Routing:
    """Sort the choices of T tokens by owner, without a host read.

    Args:
        expert_TK: int64 global expert numbers, a token's experts all different.
        bounds: int64 [M+1], `owner_bounds` on the device of `expert_TK`.
    """
    n_tokens, top_k = expert_TK.shape
    size = bounds.shape[0] - 1
    owner_TK = torch.bucketize(expert_TK, bounds[1:-1], right=True)
    reached_MT = torch.zeros(size, n_tokens, dtype=torch.bool, device=expert_TK.device).scatter_(0, owner_TK.t(), True)
    place_MT = reached_MT.flatten().cumsum(0).view(size, n_tokens) - 1
    owner_Q, order_Q = torch.sort(owner_TK.flatten(), stable=True)
    row_Q = place_MT.flatten().index_select(0, owner_Q * n_tokens + order_Q // top_k)
    first_Q = torch.diff(row_Q, prepend=row_Q.new_full((1,), -1))
    local_Q = expert_TK.flatten().index_select(0, order_Q) - bounds.index_select(0, owner_Q)
    routes_M = torch.zeros_like(bounds[:-1]).scatter_add_(0, owner_Q, torch.ones_like(owner_Q))
    counts_M2 = torch.stack([reached_MT.sum(1), routes_M], dim=1)
    return Routing(order_Q, row_Q, local_Q * 2 + first_Q, reached_MT, place_MT, counts_M2)


def complete(routing: Routing, sent: list[list[int]], received: list[list[int]]) -> Plan:
    """The plan, now that the host knows the pairs (rows, routes) sent to and received from each rank."""
    n_rows = sum(rows for rows, _ in sent)
    n_routes, n_tokens = routing.order_Q.shape[0], routing.place_MT.shape[1]
    top_k = n_routes // n_tokens if n_tokens else 1
    # All routes of a row write the same token.
    token_R = routing.order_Q.new_zeros(n_rows).scatter_(0, routing.row_Q, routing.order_Q // top_k)
    slot_JT = torch.where(routing.reached_MT, routing.place_MT, n_rows)
    if slot_JT.shape[0] > top_k:
        slot_JT = slot_JT.sort(dim=0).values[:top_k]
    return Plan(
        routing.order_Q,
        routing.code_Q,
        token_R,
        slot_JT,
        [rows for rows, _ in sent],
        [routes for _, routes in sent],
        [rows for rows, _ in received],
        [routes for _, routes in received],
    )


def sum_answers(rows_RD: Tensor, slot_JT: Tensor) -> Tensor:
    """y_TD[t] = sum of the rows in t's slots, in rank order and in float32 at least; returned in the rows' type.

    Args:
        rows_RD: the R rows and one more, which is zero and stands for unused slots.
    """
    first_T, *more = slot_JT
    y_TD = rows_RD.index_select(0, first_T).to(torch.promote_types(rows_RD.dtype, torch.float32))
    for slot_T in more:
        y_TD += rows_RD.index_select(0, slot_T)
    return y_TD.to(rows_RD.dtype)
