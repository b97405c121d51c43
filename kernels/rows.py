"""Rows and their routing weights: multiply, dot, and add back without atomics.

Shape suffixes: Q routes, S rows, D width, T tokens, R rows picked a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ENTRIES_A_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Entries of gathered rows at a time without Triton: what stays in a CPU's cache; what fills an accelerator."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums are kept in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def runs_triton(x: Tensor) -> bool:
    """Whether the Triton form serves this tensor: on an accelerator, in a type its tensor cores multiply."""
    return x.is_cuda and x.dtype != torch.float64


def whole_rows(x: Tensor) -> Tensor:
    """`x` with the entries of a row side by side, copied where they are not: kernels count columns in 32 bits, rows in 64."""
    return x if x.stride(-1) == 1 else x.contiguous()


def add_rows(sum_SD: Tensor, row_Q: Tensor, x_QD: Tensor) -> None:
    """sum_SD[row_Q[q]] += x_QD[q] in place, in sum's dtype; equal bits on every run."""
    x_QD = x_QD.to(sum_SD.dtype)
    if sum_SD.device.type == "cpu":
        sum_SD.index_add_(0, row_Q, x_QD)
    else:  # index_add_ is atomic there; this one sorts
        sum_SD.index_put_((row_Q,), x_QD, accumulate=True)


def weighted(x_QD: Tensor, weight_Q: Tensor, dtype: torch.dtype) -> Tensor:
    """weight * x, multiplied in the wider of the two types and rounded once to `dtype`."""
    return (x_QD * weight_Q[:, None]).to(dtype)


def row_dot(a_QD: Tensor, b_QD: Tensor) -> Tensor:
    """Dot product of each pair of rows [Q], added in at least float32."""
    wide = wide_dtype(a_QD.dtype)
    return torch.linalg.vecdot(a_QD.to(wide), b_QD.to(wide))


def token_chunks(index_TR: Tensor, width: int) -> Iterator[slice]:
    """Runs of tokens, all of them covered, whose gathered rows make about `ENTRIES_A_CHUNK` entries."""
    n_tokens, n_routes = index_TR.shape
    tokens = max(1, ENTRIES_A_CHUNK[index_TR.device.type] // max(1, n_routes * width))
    return (slice(first, min(first + tokens, n_tokens)) for first in range(0, n_tokens, tokens))
