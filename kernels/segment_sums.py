"""Dense gradients of a table of which every token picked some rows: weighted sums of the tokens' rows, by the row picked.

Shape suffixes: T tokens, R rows picked a token, N rows of the table, D width, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.rows import add_rows, runs_triton, token_chunks, wide_dtype


def segment_sums(index_TR: Tensor, n_rows: int, coefficients: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """For each pair: sum_ND[n] = sum over (t, r) with index_TR[t, r] = n of coefficient_TR[t, r] * row_TD[t].

    Dense [n_rows, D] in float32 at least, zeros for rows that nobody picked. No atomics: equal bits on every run. On an
    accelerator the sort of the indices serves all pairs. Not differentiable.

    Args:
        index_TR: int64 in 0..n_rows-1.
        coefficients: [T, R] each, any float dtype. rows: as many, [T, D], any strides.
    """
    return _sums(index_TR, n_rows, coefficients, rows)


def segment_sums_reference(index_TR: Tensor, n_rows: int, coefficients: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """`segment_sums`, a row of the table at a time."""
    sums = [row_TD.new_zeros(n_rows, row_TD.shape[1]) for row_TD in rows]
    for sum_ND, coefficient_TR, row_TD in zip(sums, coefficients, rows, strict=True):
        for row in range(n_rows):
            sum_ND[row] = torch.where(index_TR == row, coefficient_TR, 0).sum(1) @ row_TD
    return sums


@torch.library.custom_op("mootron::segment_sums", mutates_args=())
def _sums(index_TR: Tensor, n_rows: int, coefficients: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    if runs_triton(rows[0]):
        from kernels.segment_sums_triton import segment_sums_triton

        return segment_sums_triton(index_TR, n_rows, coefficients, rows)
    return [_sum(index_TR, n_rows, *pair) for pair in zip(coefficients, rows, strict=True)]


@_sums.register_fake
def _(index_TR: Tensor, n_rows: int, coefficients: list[Tensor], rows: list[Tensor]) -> Any:
    return [row_TD.new_empty(n_rows, row_TD.shape[1], dtype=wide_dtype(row_TD.dtype)) for row_TD in rows]


def _sum(index_TR: Tensor, n_rows: int, coefficient_TR: Tensor, row_TD: Tensor) -> Tensor:
    wide, width = wide_dtype(row_TD.dtype), row_TD.shape[1]
    sum_ND = torch.zeros(n_rows, width, dtype=wide, device=row_TD.device)
    for chunk in token_chunks(index_TR, width):
        part_CRD = coefficient_TR[chunk].to(wide)[:, :, None] * row_TD[chunk].to(wide)[:, None, :]
        add_rows(sum_ND, index_TR[chunk].flatten(), part_CRD.flatten(0, 1))
    return sum_ND
