"""Counting sort of routes by expert, and the schedule of tiles that all kernels over sorted routes share.

Three kernels: counts of every block of routes, a scan of them, and each route's place. Stable, without atomics and without
a read by the host: equal bits on every run.

Shape suffixes: Q routes, E experts, N blocks of routes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.routes import sort_routes_reference

BLOCK = 128
SCAN_BLOCKS, SCAN_EXPERTS = 64, 32


class Plan(NamedTuple):
    """Where each expert's routes stand, and its tiles.

    order_Q: routes in expert order, in the order they came within an expert. ends_E: where each expert's run ends.
    tile_ends_E: the same in tiles of `tile_rows` routes: tile t is of the first expert whose tile end is greater than t.
    """

    order_Q: Tensor
    ends_E: Tensor
    tile_ends_E: Tensor
    tile_rows: int

    @property
    def most_tiles(self) -> int:
        """Never fewer than there are, and known without a look at the data."""
        n_routes, n_experts = self.order_Q.shape[0], self.ends_E.shape[0]
        return triton.cdiv(n_routes, self.tile_rows) + min(n_experts, n_routes)


def counting_sort(expert_Q: Tensor, n_experts: int, tile_rows: int) -> Plan:
    """The plan of routes to `expert_Q`, int64 in 0..n_experts-1; all of the plan int64."""
    n_routes, device = expert_Q.shape[0], expert_Q.device
    n_blocks, padded = triton.cdiv(n_routes, BLOCK), triton.next_power_of_2(max(n_experts, 2))
    counts_NE = torch.empty(n_blocks, n_experts, dtype=torch.int32, device=device)
    totals_E = torch.zeros(n_experts, dtype=torch.int32, device=device)
    ends_E = torch.empty(n_experts, dtype=torch.int64, device=device)
    tile_ends_E, order_Q = torch.empty_like(ends_E), torch.empty_like(expert_Q)
    if n_blocks:
        _count[(n_blocks,)](expert_Q, counts_NE, n_routes, n_experts, BLOCK=BLOCK, EXPERTS=padded)
        grid = (triton.cdiv(n_experts, SCAN_EXPERTS),)
        _scan[grid](counts_NE, totals_E, n_blocks, n_experts, BLOCKS=SCAN_BLOCKS, EXPERTS=SCAN_EXPERTS)
    _ends[(1,)](totals_E, ends_E, tile_ends_E, n_experts, TILE=tile_rows, EXPERTS=padded)
    if n_blocks:
        _place[(n_blocks,)](expert_Q, counts_NE, totals_E, ends_E, order_Q, n_routes, n_experts, BLOCK=BLOCK)
    return Plan(order_Q, ends_E, tile_ends_E, tile_rows)


def counting_sort_reference(expert_Q: Tensor, n_experts: int, tile_rows: int) -> Plan:
    """`counting_sort`, an expert at a time."""
    order_Q, ends_E = sort_routes_reference(expert_Q, n_experts)
    count_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    return Plan(order_Q, ends_E, ((count_E + tile_rows - 1) // tile_rows).cumsum(0), tile_rows)


@triton.jit(do_not_specialize=["n_routes"])
def _count(
    expert_ptr: tl.tensor, counts_ptr: tl.tensor, n_routes: tl.tensor, n_experts: tl.tensor, BLOCK: tl.constexpr, EXPERTS: tl.constexpr
) -> None:
    """Routes of one block to each expert."""
    block = tl.program_id(0).to(tl.int64)
    route = block * BLOCK + tl.arange(0, BLOCK)
    there = route < n_routes
    expert = tl.load(expert_ptr + route, mask=there, other=0).to(tl.int32)
    count_E = tl.histogram(expert, EXPERTS, mask=there)
    column = tl.arange(0, EXPERTS)
    tl.store(counts_ptr + block * n_experts + column, count_E, mask=column < n_experts)


@triton.jit(do_not_specialize=["n_blocks"])
def _scan(
    counts_ptr: tl.tensor, totals_ptr: tl.tensor, n_blocks: tl.tensor, n_experts: tl.tensor, BLOCKS: tl.constexpr, EXPERTS: tl.constexpr
) -> None:
    """In place: of a block and an expert, how many routes the blocks before have; and each expert's total."""
    column = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    before_E = tl.zeros([EXPERTS], dtype=tl.int32)
    for first in range(0, n_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        place = counts_ptr + block[:, None].to(tl.int64) * n_experts + column[None, :]
        inside = (block < n_blocks)[:, None] & (column < n_experts)[None, :]
        count_NE = tl.load(place, mask=inside, other=0)
        tl.store(place, before_E[None, :] + tl.cumsum(count_NE, 0) - count_NE, mask=inside)
        before_E += tl.sum(count_NE, 0)
    tl.store(totals_ptr + column, before_E, mask=column < n_experts)


@triton.jit
def _ends(
    totals_ptr: tl.tensor, ends_ptr: tl.tensor, tile_ends_ptr: tl.tensor, n_experts: tl.tensor, TILE: tl.constexpr, EXPERTS: tl.constexpr
) -> None:
    """Ends of the experts' runs, in routes and in tiles."""
    column = tl.arange(0, EXPERTS)
    total_E = tl.load(totals_ptr + column, mask=column < n_experts, other=0).to(tl.int64)
    tl.store(ends_ptr + column, tl.cumsum(total_E, 0), mask=column < n_experts)
    tl.store(tile_ends_ptr + column, tl.cumsum((total_E + TILE - 1) // TILE, 0), mask=column < n_experts)


@triton.jit(do_not_specialize=["n_routes"])
def _place(
    expert_ptr: tl.tensor,
    before_ptr: tl.tensor,
    totals_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    order_ptr: tl.tensor,
    n_routes: tl.tensor,
    n_experts: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Each route of a block to its place: start of the expert's run, what blocks before have, and earlier ones of this block."""
    block = tl.program_id(0).to(tl.int64)
    route = block * BLOCK + tl.arange(0, BLOCK)
    there = route < n_routes
    expert = tl.load(expert_ptr + route, mask=there, other=-1).to(tl.int32)
    number = tl.arange(0, BLOCK)
    earlier = (expert[:, None] == expert[None, :]) & (number[None, :] < number[:, None])
    rank = tl.sum(earlier.to(tl.int32), 1)
    start = tl.load(ends_ptr + expert, mask=there, other=0) - tl.load(totals_ptr + expert, mask=there, other=0)
    before = tl.load(before_ptr + block * n_experts + expert, mask=there, other=0)
    tl.store(order_ptr + start + before + rank, route, mask=there)
