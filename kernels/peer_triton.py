"""One kernel for what tokens do with the table rows that they pick: dot, activate, weight and sum, or only a dot, or only a sum.

A program has one token, whose row and sum stay in registers while tiles of picked rows stream through. It is bound by memory: about one
FLOP a byte. PEER's forward is the whole; its backward is a dot with `up` and a sum of `down`.

Shape suffixes: T tokens, R rows picked a token, N rows of a table, D width; in the kernel R and D are a tile's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import whole_rows, wide_dtype
from kernels.tiles import sum_type

TILE_ENTRIES = 4096
"""Of a table, in a program's registers: 32 a thread."""


def peer_triton(
    x_TD: Tensor, index_TR: Tensor, weight_TR: Tensor, down_ND: Tensor, up_ND: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """`kernels.peer.peer` without its gradients, and the dot products [T, R]."""
    dot_TR = torch.empty(index_TR.shape, dtype=wide_dtype(x_TD.dtype), device=x_TD.device)
    y_TD = x_TD.new_empty(x_TD.shape)
    _launch(index_TR, x_TD, down_ND, dot_TR, weight_TR, up_ND, y_TD, activation)
    return y_TD, dot_TR


def gather_dot_triton(x_TD: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    """`kernels.table_rows.gather_dot` without its gradients."""
    dot_TR = torch.empty(index_TR.shape, dtype=wide_dtype(x_TD.dtype), device=x_TD.device)
    _launch(index_TR, x_TD, table_ND, dot_TR, None, None, None)
    return dot_TR


def gather_sum_triton(coefficient_TR: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    """`kernels.table_rows.gather_sum` without its gradients."""
    y_TD = table_ND.new_empty(len(index_TR), table_ND.shape[1])
    _launch(index_TR, None, None, None, coefficient_TR, table_ND, y_TD)
    return y_TD


def _launch(
    index_TR: Tensor,
    x_TD: Tensor | None,
    down_ND: Tensor | None,
    dot_TR: Tensor | None,
    weight_TR: Tensor | None,
    up_ND: Tensor | None,
    y_TD: Tensor | None,
    activation: str = "",
) -> None:
    """Write `dot_TR` of `x_TD` and `down_ND`, and `y_TD` of `up_ND`; those that are None are left out. Results are contiguous."""
    n_tokens, n_routes = index_TR.shape
    x_TD, down_ND, up_ND = (tensor if tensor is None else whole_rows(tensor) for tensor in (x_TD, down_ND, up_ND))
    table_ND = up_ND if down_ND is None else down_ND
    assert table_ND is not None
    width = table_ND.shape[1]
    block = triton.next_power_of_2(width)
    if n_tokens == 0 or width == 0:
        for result in (dot_TR, y_TD):
            if result is not None:
                result.zero_()
        return
    _peer[(n_tokens,)](
        index_TR.contiguous(),
        x_TD,
        down_ND,
        dot_TR,
        None if weight_TR is None else weight_TR.contiguous(),
        up_ND,
        y_TD,
        width,
        *((0, 0) if x_TD is None else x_TD.stride()),
        *((0, 0) if down_ND is None else down_ND.stride()),
        *((0, 0) if up_ND is None else up_ND.stride()),
        ROUTES=n_routes,
        ACTIVATION=activation,
        BLOCK_R=max(1, min(TILE_ENTRIES // block, triton.next_power_of_2(n_routes))),
        BLOCK_D=block,
        SUM=sum_type(table_ND.dtype),
        num_warps=min(16, max(4, block // 1024)),
    )


@triton.jit
def _peer(
    index_ptr: tl.tensor,
    x_ptr: tl.tensor,
    down_ptr: tl.tensor,
    dot_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    up_ptr: tl.tensor,
    y_ptr: tl.tensor,
    width: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    down_row: tl.tensor,
    down_column: tl.tensor,
    up_row: tl.tensor,
    up_column: tl.tensor,
    ROUTES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One token and all rows that it picked, BLOCK_R at a time."""
    token = tl.program_id(0).to(tl.int64)
    column_D = tl.arange(0, BLOCK_D)
    inside_D = column_D < width
    sum_D = tl.zeros([BLOCK_D], dtype=SUM)
    if down_ptr is not None:
        x_D = tl.load(x_ptr + token * x_row + column_D * x_column, mask=inside_D, other=0).to(SUM)
    for first in range(0, ROUTES, BLOCK_R):
        place_R = first + tl.arange(0, BLOCK_R)
        there_R = place_R < ROUTES
        place_R += token * ROUTES
        index_R = tl.load(index_ptr + place_R, mask=there_R, other=0)
        inside_RD = there_R[:, None] & inside_D[None, :]
        if up_ptr is not None:  # asked for before the dot's sum, which waits for all warps: both tables' rows are then on their way
            up_RD = tl.load(up_ptr + index_R[:, None] * up_row + column_D[None, :] * up_column, mask=inside_RD, other=0)
        if down_ptr is not None:
            down_RD = tl.load(down_ptr + index_R[:, None] * down_row + column_D[None, :] * down_column, mask=inside_RD, other=0)
            dot_R = tl.sum(down_RD.to(SUM) * x_D[None, :], 1)
            tl.store(dot_ptr + place_R, dot_R, mask=there_R)
        if up_ptr is not None:
            coefficient_R = tl.load(weight_ptr + place_R, mask=there_R, other=0).to(SUM)
            if ACTIVATION == "relu":
                coefficient_R *= tl.where(dot_R < 0, 0, dot_R)  # a maximum would hide a NaN
            if ACTIVATION == "gelu":
                coefficient_R *= 0.5 * dot_R * (1 + tl.erf(dot_R * 0.7071067811865476))
            sum_D += tl.sum(coefficient_R[:, None] * up_RD.to(SUM), 0)
    if up_ptr is not None:
        tl.store(y_ptr + token * width + column_D, sum_D.to(y_ptr.dtype.element_ty), mask=inside_D)
