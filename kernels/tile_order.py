"""The order in which programs take tiles, so that rows gathered at one time lie together and come from the second-level cache.

An expert's routes ascend by row, so an equal share of every expert's tiles covers about the same rows. Window w has the tiles of that
share of every expert, expert by expert. A window's rows are read from memory once, and every expert's weights once a window.

Shape suffixes: E experts, P programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.counting_sort import Plan

WINDOW_BYTES = 2**24
"""Rows of a window: a third of the cache (50 MB on H100, 40 on A100); weights stream through it too, and a window's edges are not sharp."""
BLOCK = 32


def windows_of(x_SD: Tensor, plan: Plan) -> int:
    """Windows to gather rows of `x_SD` in; no more than an expert has tiles on average, as every window reads all weights."""
    tiles = plan.most_tiles // max(1, plan.ends_E.shape[0])
    return max(1, min(triton.cdiv(x_SD.numel() * x_SD.itemsize, WINDOW_BYTES), tiles))


def tile_order(plan: Plan, windows: int) -> Tensor:
    """The tile that each of `plan.most_tiles` programs takes, int64 [P]: all tiles once, then `most_tiles`, which is none.

    An expert of n tiles has tiles ceil(n * w / windows) up to ceil(n * (w + 1) / windows) in window w.
    """
    n_experts, device = plan.ends_E.shape[0], plan.ends_E.device
    tile_P = torch.full((plan.most_tiles,), plan.most_tiles, dtype=torch.int64, device=device)
    if n_experts:
        _tile_order[(n_experts,)](
            plan.tile_ends_E, tile_P, windows, n_experts, EXPERTS=triton.next_power_of_2(max(n_experts, 2)), BLOCK=BLOCK
        )
    return tile_P


def tile_order_reference(plan: Plan, windows: int) -> Tensor:
    """`tile_order`, a window and an expert at a time."""
    ends = plan.tile_ends_E.tolist()
    runs = [range(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
    tiles = [t for w in range(windows) for run in runs for t in run if (t - run.start) * windows // len(run) == w]
    tiles += [plan.most_tiles] * (plan.most_tiles - len(tiles))
    return torch.tensor(tiles, dtype=torch.int64, device=plan.ends_E.device)


@triton.jit(do_not_specialize=["windows"])
def _tile_order(
    tile_ends_ptr: tl.tensor, tile_ptr: tl.tensor, windows: tl.tensor, n_experts: tl.tensor, EXPERTS: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """One expert's tiles of every window, after those of the windows before and of this window's experts before."""
    expert, column = tl.program_id(0), tl.arange(0, EXPERTS)
    end_E = tl.load(tile_ends_ptr + column, mask=column < n_experts, other=0)
    begin_E = tl.load(tile_ends_ptr + column - 1, mask=(column > 0) & (column < n_experts), other=0)
    tiles_E = end_E - begin_E
    for window in range(windows):
        from_E, to_E = tl.cdiv(tiles_E * window, windows), tl.cdiv(tiles_E * (window + 1), windows)
        place = tl.sum(tl.where(column < expert, to_E, from_E), 0)
        first = tl.sum(tl.where(column == expert, begin_E + from_E, 0), 0)
        number = tl.sum(tl.where(column == expert, to_E - from_E, 0), 0)
        for done in range(0, number, BLOCK):
            next_N = done + tl.arange(0, BLOCK)
            tl.store(tile_ptr + place + next_N, first + next_N, mask=next_N < number)
