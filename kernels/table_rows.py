"""What a token does with the rows of a table that it picks: dot products with them, and their weighted sum.

Each is the other's transpose, and the table's gradient is the same segment sum for both. Product-key memories (arXiv 1907.05242) are
the sum alone; PEER (`kernels.peer`) is a dot, an activation and a sum. A table that is cut along D takes the two apart: the parts'
dot products are added before the activation. No tensor of size T x R x D is made.

Shape suffixes: T tokens, R rows picked a token, N rows of the table, D width, Q routes and C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.rows import runs_triton, token_chunks, wide_dtype
from kernels.segment_sums import segment_sums


def gather_dot(x_TD: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    """dot_TR[t, r] = x_TD[t] . table_ND[index_TR[t, r]], in float32 at least. Differentiable in x and table.

    Equal bits on every run, both ways. The table's gradient is dense and float32 at least: autograd rounds it to the table's
    `grad_dtype`, which is the table's own type unless one sets it.

    Args:
        x_TD, table_ND: of one dtype, any strides. index_TR: int64 in 0..N-1; a row may be picked more than once.
    """
    return _dot(x_TD, table_ND, index_TR)


def gather_sum(coefficient_TR: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    """y_TD[t] = sum over r of coefficient_TR[t, r] * table_ND[index_TR[t, r]], in the table's dtype. Differentiable in both.

    Summed in float32 at least; equal bits and the table's gradient as in `gather_dot`.

    Args:
        coefficient_TR: any float dtype. table_ND: any strides. index_TR: int64 in 0..N-1; a row may be picked more than once.
    """
    return _sum(coefficient_TR, table_ND, index_TR)


def gather_dot_reference(x_TD: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    """`gather_dot` with all rows gathered, differentiated by autograd."""
    return torch.einsum("td,trd->tr", x_TD, table_ND[index_TR])


def gather_sum_reference(coefficient_TR: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    """`gather_sum` with all rows gathered, differentiated by autograd."""
    return torch.einsum("tr,trd->td", coefficient_TR, table_ND[index_TR])


@torch.library.custom_op("mootron::gather_dot", mutates_args=())
def _dot(x_TD: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    if runs_triton(x_TD):
        from kernels.peer_triton import gather_dot_triton

        return gather_dot_triton(x_TD, table_ND, index_TR)
    dot_TR = torch.empty(index_TR.shape, dtype=wide_dtype(x_TD.dtype), device=x_TD.device)
    for chunk in token_chunks(index_TR, table_ND.shape[1]):
        torch.bmm(_gathered(table_ND, index_TR[chunk]), x_TD[chunk].to(dot_TR.dtype)[:, :, None], out=dot_TR[chunk][:, :, None])
    return dot_TR


@torch.library.custom_op("mootron::gather_sum", mutates_args=())
def _sum(coefficient_TR: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    if runs_triton(table_ND):
        from kernels.peer_triton import gather_sum_triton

        return gather_sum_triton(coefficient_TR, table_ND, index_TR)
    y_TD = table_ND.new_empty(len(index_TR), table_ND.shape[1])
    for chunk in token_chunks(index_TR, table_ND.shape[1]):
        rows_CRD = _gathered(table_ND, index_TR[chunk])
        y_TD[chunk] = torch.bmm(coefficient_TR[chunk].to(rows_CRD.dtype)[:, None, :], rows_CRD).squeeze(1).to(y_TD.dtype)
    return y_TD


def _gathered(table_ND: Tensor, index_CR: Tensor) -> Tensor:
    rows_QD = table_ND.index_select(0, index_CR.flatten())
    return rows_QD.to(wide_dtype(table_ND.dtype)).view(*index_CR.shape, table_ND.shape[1])


@_dot.register_fake
def _(x_TD: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    return x_TD.new_empty(index_TR.shape, dtype=wide_dtype(x_TD.dtype))


@_sum.register_fake
def _(coefficient_TR: Tensor, table_ND: Tensor, index_TR: Tensor) -> Tensor:
    return table_ND.new_empty(index_TR.shape[0], table_ND.shape[1])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_dot(ctx: Any, ddot_TR: Tensor) -> tuple[Tensor | None, ...]:
    x_TD, table_ND, index_TR = ctx.saved_tensors
    needs_x, needs_table, _ = ctx.needs_input_grad
    dx_TD = gather_sum(ddot_TR, table_ND, index_TR) if needs_x else None
    return dx_TD, segment_sums(index_TR, len(table_ND), [ddot_TR], [x_TD])[0] if needs_table else None, None


def _differentiate_sum(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
    coefficient_TR, table_ND, index_TR = ctx.saved_tensors
    needs_coefficient, needs_table, _ = ctx.needs_input_grad
    dcoefficient_TR = gather_dot(dy_TD, table_ND, index_TR).to(coefficient_TR.dtype) if needs_coefficient else None
    return dcoefficient_TR, segment_sums(index_TR, len(table_ND), [coefficient_TR], [dy_TD])[0] if needs_table else None, None


_dot.register_autograd(_differentiate_dot, setup_context=_keep)
_sum.register_autograd(_differentiate_sum, setup_context=_keep)
