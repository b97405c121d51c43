"""Weighted sums of tokens' rows by the table row they picked, on an accelerator: sort, full pieces of long runs, then every row.

A program has one row of the table, adds its routes in sorted order and writes it once, zeros included. So that a row which all tokens
picked does not keep one program busy alone, every full PIECE of routes is added by a program of its own first, and the row's
program adds those sums and the rest. Which sums there are follows from the sorted order: no atomics and no read by the host.

Shape suffixes: T tokens, R rows picked a token, N rows of the table, D width, Q sorted routes, P pieces; in kernels Q and D are a tile's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.routes import Routes, sort_routes
from kernels.rows import whole_rows, wide_dtype
from kernels.tiles import sum_type

PIECE = 512
"""Routes. Even use of 2^20 rows by 65,536 tokens of 128 picks is 8 a row; a row that has all of them has 16,384 pieces."""
TILE_ENTRIES, WIDEST, MOST_ROUTES = 4096, 1024, 16


def segment_sums_triton(index_TR: Tensor, n_rows: int, coefficients: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """`kernels.segment_sums.segment_sums` by Triton kernels."""
    index_TR = index_TR.contiguous()
    plan = sort_routes(index_TR.view(-1), n_rows)
    return [_segment_sum(index_TR, plan, *pair) for pair in zip(coefficients, rows, strict=True)]


def _segment_sum(index_TR: Tensor, plan: Routes, coefficient_TR: Tensor, row_TD: Tensor) -> Tensor:
    row_TD = whole_rows(row_TD)
    n_rows, width = plan.ends_E.shape[0], row_TD.shape[1]
    sum_ND = torch.empty(n_rows, width, dtype=wide_dtype(row_TD.dtype), device=row_TD.device)
    part_PD = sum_ND.new_empty(index_TR.numel() // PIECE, width)
    if sum_ND.numel() == 0:
        return sum_ND
    block = min(WIDEST, triton.next_power_of_2(width))
    tile = {"BLOCK_Q": min(MOST_ROUTES, TILE_ENTRIES // block), "BLOCK_D": block}
    constants = {"ROUTES": max(1, index_TR.shape[1]), "PIECE": PIECE, "SUM": sum_type(row_TD.dtype), **tile}
    routes = (plan.order_Q, coefficient_TR.contiguous(), row_TD, plan.ends_E, part_PD)
    if len(part_PD):
        _add_pieces[(len(part_PD), triton.cdiv(width, block))](*routes, index_TR, width, *row_TD.stride(), **constants)
    _add_rows[(n_rows, triton.cdiv(width, block))](*routes, sum_ND, width, *row_TD.stride(), **constants)
    return sum_ND


@triton.jit
def _add_pieces(
    order_ptr: tl.tensor,
    coefficient_ptr: tl.tensor,
    row_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    part_ptr: tl.tensor,
    index_ptr: tl.tensor,
    width: tl.tensor,
    row_row: tl.tensor,
    row_column: tl.tensor,
    ROUTES: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """The piece that begins among the routes block*PIECE..block*PIECE+PIECE-1, if one does; at most one can."""
    block = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    # A piece that begins in the block has the block's last route.
    row = tl.load(index_ptr + tl.load(order_ptr + (block + 1) * PIECE - 1))
    begin, end = _run(ends_ptr, row)
    first = begin + (block - begin // PIECE) * PIECE
    if first + PIECE <= end:
        sum_D = _sum_of(
            order_ptr, coefficient_ptr, row_ptr, first, first + PIECE, column_D, width, row_row, row_column, ROUTES, BLOCK_Q, SUM
        )
        tl.store(part_ptr + block * width + column_D, sum_D, mask=column_D < width)


@triton.jit
def _add_rows(
    order_ptr: tl.tensor,
    coefficient_ptr: tl.tensor,
    row_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    part_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    width: tl.tensor,
    row_row: tl.tensor,
    row_column: tl.tensor,
    ROUTES: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One row of the table: its full pieces, then the routes after them."""
    row = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin, end = _run(ends_ptr, row)
    first_piece, pieces = begin // PIECE, (end - begin) // PIECE
    sum_D = tl.zeros([BLOCK_D], dtype=SUM)
    for piece in range(0, pieces, BLOCK_Q):
        piece_Q = piece + tl.arange(0, BLOCK_Q)
        place_QD = part_ptr + (first_piece + piece_Q)[:, None] * width + column_D[None, :]
        sum_D += tl.sum(tl.load(place_QD, mask=(piece_Q < pieces)[:, None] & (column_D < width)[None, :], other=0), 0)
    rest = begin + pieces * PIECE
    sum_D += _sum_of(order_ptr, coefficient_ptr, row_ptr, rest, end, column_D, width, row_row, row_column, ROUTES, BLOCK_Q, SUM)
    tl.store(sum_ptr + row * width + column_D, sum_D, mask=column_D < width)


@triton.jit
def _run(ends_ptr: tl.tensor, row: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Where the row's routes begin and end in sorted order."""
    return tl.load(ends_ptr + row - 1, mask=row > 0, other=0), tl.load(ends_ptr + row)


@triton.jit
def _sum_of(
    order_ptr: tl.tensor,
    coefficient_ptr: tl.tensor,
    row_ptr: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    column_D: tl.tensor,
    width: tl.tensor,
    row_row: tl.tensor,
    row_column: tl.tensor,
    ROUTES: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    SUM: tl.constexpr,
) -> tl.tensor:
    """Some columns of the weighted sum of the tokens' rows, over the sorted routes first..last-1."""
    sum_D = tl.zeros_like(column_D).to(SUM)
    for start in range(first, last, BLOCK_Q):
        place_Q = start + tl.arange(0, BLOCK_Q)
        there_Q = place_Q < last
        route_Q = tl.load(order_ptr + place_Q, mask=there_Q, other=0)
        coefficient_Q = tl.load(coefficient_ptr + route_Q, mask=there_Q, other=0).to(SUM)
        place_QD = row_ptr + (route_Q // ROUTES)[:, None] * row_row + column_D[None, :] * row_column
        row_QD = tl.load(place_QD, mask=there_Q[:, None] & (column_D < width)[None, :], other=0)
        sum_D += tl.sum(coefficient_Q[:, None] * row_QD.to(SUM), 0)
    return sum_D
