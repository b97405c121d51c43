"""Parts that kernels over sorted routes share: which expert and which routes a tile has. Shape suffixes: E experts, M rows of a tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def tile_rows(dtype: torch.dtype) -> int:
    """Routes of a tile. One number a type, whatever the number of routes: no kernel is compiled again when that changes."""
    return 128 if dtype.itemsize <= 2 else 32


def sum_type(dtype: torch.dtype) -> tl.dtype:
    """What products of this type are added in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def expert_of(tile: tl.tensor, tile_ends_ptr: tl.tensor, n_experts: tl.tensor, EXPERTS: tl.constexpr) -> tl.tensor:
    """The expert whose tile this is; `n_experts` for a tile past the last one."""
    column = tl.arange(0, EXPERTS)
    tile_end_E = tl.load(tile_ends_ptr + column, mask=column < n_experts, other=2**62)
    return tl.sum((tile_end_E <= tile).to(tl.int32), 0)


@triton.jit
def routes_of(
    tile: tl.tensor, expert: tl.tensor, ends_ptr: tl.tensor, tile_ends_ptr: tl.tensor, TILE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Places in expert order of the tile's routes, and where the expert's run ends."""
    first_tile = tl.load(tile_ends_ptr + expert - 1, mask=expert > 0, other=0)
    first = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    return first + (tile - first_tile) * TILE + tl.arange(0, TILE), tl.load(ends_ptr + expert)
