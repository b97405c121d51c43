"""Sum of the routes of every row, in their order and so without atomics.

Shape suffixes: Q routes in the order of their rows, S rows, D width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import sum_type


def sum_by_row(x_QD: Tensor, ends_S: Tensor) -> Tensor:
    """y_SD[s] = sum of rows ends_S[s-1]..ends_S[s]-1 of `x_QD`, added in at least float32, in x's dtype; zeros without routes."""
    n_rows, width = ends_S.shape[0], x_QD.shape[1]
    y_SD = torch.empty(n_rows, width, dtype=x_QD.dtype, device=x_QD.device)
    if y_SD.numel() == 0:
        return y_SD
    block = min(1024, max(16, triton.next_power_of_2(width)))
    grid = (n_rows, triton.cdiv(width, block))
    _sum_by_row[grid](x_QD, y_SD, ends_S, width, *x_QD.stride(), BLOCK=block, SUM=sum_type(x_QD.dtype))
    return y_SD


def sum_by_row_reference(x_QD: Tensor, ends_S: Tensor) -> Tensor:
    """`sum_by_row`, a row at a time."""
    return torch.stack([x_QD[start:stop].sum(0) for start, stop in pairwise([0, *ends_S.tolist()])])


def row_ends(row_Q: Tensor, n_rows: int) -> Tensor:
    """Where each row's routes end, int64 [S]; `row_Q` is ascending. No read by the host."""
    return torch.searchsorted(row_Q, torch.arange(n_rows, device=row_Q.device), right=True)


@triton.jit
def _sum_by_row(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    width: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One row, one block of columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    begin = tl.load(ends_ptr + row - 1, mask=row > 0, other=0)
    end = tl.load(ends_ptr + row)
    sum_D = tl.zeros([BLOCK], dtype=SUM)
    for route in range(begin, end):
        sum_D += tl.load(x_ptr + route * x_row + column * x_column, mask=inside, other=0).to(SUM)
    tl.store(y_ptr + row * width + column, sum_D.to(y_ptr.dtype.element_ty), mask=inside)
