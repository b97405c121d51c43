"""Each run of rows times its own matrix: the matmul under every expert layer.

Shape suffixes: Q rows in expert order, D width in, F width out, E experts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def grouped_matmul(x_QD: Tensor, w_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """y_QF: rows ends_E[e-1]..ends_E[e]-1 of x_QD times w_EDF[e]. Differentiable in x and w.

    Args:
        x_QD: rows in expert order. w_EDF: one matrix an expert, same dtype.
        ends_E: int64, where each expert's run ends; the last is Q. Runs may be empty.
    """
    return _GroupedMatmul.apply(x_QD, w_EDF, ends_E)


def grouped_matmul_reference(x_QD: Tensor, w_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """`grouped_matmul`, an expert at a time, differentiated by autograd."""
    starts = [0, *ends_E.tolist()]
    runs = [x_QD[starts[e] : starts[e + 1]] @ w_EDF[e] for e in range(w_EDF.shape[0])]
    return torch.cat([*runs, x_QD.new_zeros(0, w_EDF.shape[2])])


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_QD: Tensor, w_EDF: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_QD, w_EDF)
        ctx.sizes = run_sizes(ends_E)
        return rows_times(x_QD, w_EDF, ctx.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_QF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_QD, w_EDF = ctx.saved_tensors
        dx_QD = rows_times(dy_QF, w_EDF.transpose(1, 2), ctx.sizes) if ctx.needs_input_grad[0] else None
        dw_EDF = outer_products(x_QD, dy_QF, ctx.sizes) if ctx.needs_input_grad[1] else None
        return dx_QD, dw_EDF, None


def run_sizes(ends_E: Tensor) -> list[int]:
    """Length of every run, on the host."""
    ends = [0, *ends_E.tolist()]
    return [stop - start for start, stop in pairwise(ends)]


def rows_times(x_QD: Tensor, w_EDF: Tensor, sizes: list[int]) -> Tensor:
    """The product without autograd. One library call an expert into its place in the result; `w_EDF` may be a transposed view."""
    y_QF = x_QD.new_empty(x_QD.shape[0], w_EDF.shape[2])
    for x, w, y in zip(x_QD.split(sizes), w_EDF.unbind(0), y_QF.split(sizes), strict=True):
        torch.mm(x, w, out=y)
    return y_QF


def outer_products(x_QD: Tensor, dy_QF: Tensor, sizes: list[int]) -> Tensor:
    """dw_EDF[e] = x_e^T dy_e, summed over each run's rows; zeros for an empty run."""
    dw_EDF = x_QD.new_empty(len(sizes), x_QD.shape[1], dy_QF.shape[1])
    for x, dy, dw in zip(x_QD.split(sizes), dy_QF.split(sizes), dw_EDF.unbind(0), strict=True):
        torch.mm(x.t(), dy, out=dw)
    return dw_EDF
