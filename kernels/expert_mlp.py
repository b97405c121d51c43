"""The expert layer: every row through its chosen two-layer ReLU experts, summed with the router's weights.

Shape suffixes: S rows, Q routes (row_Q[q] goes to expert_Q[q] with weight_Q[q]), E experts, D model width, F expert width.
N routes of one chunk. Inside the Function everything with Q or N stands in expert order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.grouped_matmul import arithmetic_dtype, outer_products, rows_times
from kernels.routes import Chunk, cut, sort_routes
from kernels.rows import add_rows, row_dot, runs_triton, weighted, wide_dtype
from kernels.spans import span


def expert_mlp(
    x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool = False
) -> Tensor:
    """y_SD[s] = sum over routes q with row_Q[q] = s of weight_Q[q] * relu(x_SD[s] @ up_EDF[e]) @ down_EFD[e], e = expert_Q[q].

    Differentiable in x, weight, up and down (arXiv 2310.10837 eq. 16 without renormalisation). The sum over a row's
    routes is taken in at least float32 and returned in x's dtype. No atomics: equal bits on every run.

    Args:
        x_SD: rows. row_Q, expert_Q: int64, routes in the order of their rows. weight_Q: any float dtype, multiplied in at least float32.
        up_EDF, down_EFD: the experts, in x's dtype.
        recompute: keep no hidden activations [Q, F]; the backward makes them again from x.
    """
    if runs_triton(x_SD):
        from kernels.expert_mlp_triton import expert_mlp_triton

        with span("experts"):
            return expert_mlp_triton(x_SD, row_Q, expert_Q, weight_Q, up_EDF, down_EFD, recompute)
    return _ExpertMLP.apply(x_SD, row_Q, expert_Q, weight_Q, up_EDF, down_EFD, recompute)


def expert_mlp_reference(x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> Tensor:
    """`expert_mlp`, an expert at a time, differentiated by autograd."""
    y_SD = torch.zeros_like(x_SD)
    for expert in range(up_EDF.shape[0]):
        route_N = (expert_Q == expert).nonzero().flatten()
        row_N = row_Q[route_N]
        answer_ND = torch.relu(x_SD[row_N] @ up_EDF[expert]) @ down_EFD[expert]
        y_SD = y_SD.index_add(0, row_N, (weight_Q[route_N, None] * answer_ND).to(x_SD.dtype))
    return y_SD


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SD: Tensor, row_Q: Tensor, expert_Q: Tensor, weight_Q: Tensor, up_EDF: Tensor, down_EFD: Tensor, recompute: bool
    ) -> Tensor:
        with span("experts"):
            order_Q, ends_E = sort_routes(expert_Q, up_EDF.shape[0])
            ctx.chunks = cut(ends_E)
            row_Q, weight_Q = row_Q[order_Q], weight_Q[order_Q]
            data_SD = x_SD.to(arithmetic_dtype(x_SD))
            y_SD = torch.zeros_like(x_SD, dtype=wide_dtype(x_SD.dtype), memory_format=torch.contiguous_format)
            hidden = []
            for chunk in ctx.chunks:
                row_N, weight_N = row_Q[chunk.routes], weight_Q[chunk.routes]
                hidden_NF = _hidden(data_SD.index_select(0, row_N), up_EDF, chunk, x_SD.dtype)
                answer_ND = rows_times(weighted(hidden_NF, weight_N, data_SD.dtype), down_EFD[chunk.experts], chunk.sizes)
                add_rows(y_SD, row_N, answer_ND)
                hidden += [] if recompute else [hidden_NF]
            ctx.save_for_backward(x_SD, row_Q, order_Q, weight_Q, up_EDF, down_EFD, *hidden)
            return y_SD.to(x_SD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_SD: Tensor) -> tuple[Tensor | None, ...]:
        with span("experts"):
            return _backward(ctx, dy_SD)


def _backward(ctx: Any, dy_SD: Tensor) -> tuple[Tensor | None, ...]:
    x_SD, row_Q, order_Q, weight_Q, up_EDF, down_EFD, *hidden = ctx.saved_tensors
    needs_x, _, _, needs_weight, needs_up, needs_down, _ = ctx.needs_input_grad
    dtype, wide = arithmetic_dtype(x_SD), wide_dtype(x_SD.dtype)
    data_SD, dy_SD = x_SD.to(dtype), dy_SD.to(dtype)
    dx_SD = torch.zeros_like(x_SD, dtype=wide, memory_format=torch.contiguous_format) if needs_x else None
    dweight_Q = torch.empty_like(weight_Q) if needs_weight else None
    dup_EDF = torch.empty_like(up_EDF, memory_format=torch.contiguous_format) if needs_up else None
    ddown_EFD = torch.empty_like(down_EFD, memory_format=torch.contiguous_format) if needs_down else None
    for number, chunk in enumerate(ctx.chunks):
        row_N, weight_N = row_Q[chunk.routes], weight_Q[chunk.routes]
        rows_ND, dy_ND = data_SD.index_select(0, row_N), dy_SD.index_select(0, row_N)
        hidden_NF = (hidden[number] if hidden else _hidden(rows_ND, up_EDF, chunk, x_SD.dtype)).to(dtype)
        if ddown_EFD is not None:
            outer_products(weighted(hidden_NF, weight_N, dtype), dy_ND, chunk.sizes, out_EDF=ddown_EFD[chunk.experts])
        dhidden_NF = rows_times(dy_ND, down_EFD[chunk.experts].transpose(1, 2), chunk.sizes)
        if dweight_Q is not None:
            dweight_Q[order_Q[chunk.routes]] = row_dot(hidden_NF, dhidden_NF).to(weight_Q.dtype)
        dhidden_NF = torch.ops.aten.threshold_backward(weighted(dhidden_NF, weight_N, dtype), hidden_NF, 0)
        if dup_EDF is not None:
            outer_products(rows_ND, dhidden_NF, chunk.sizes, out_EDF=dup_EDF[chunk.experts])
        if dx_SD is not None:
            add_rows(dx_SD, row_N, rows_times(dhidden_NF, up_EDF[chunk.experts].transpose(1, 2), chunk.sizes))
    return None if dx_SD is None else dx_SD.to(x_SD.dtype), None, None, dweight_Q, dup_EDF, ddown_EFD, None


def _hidden(rows_ND: Tensor, up_EDF: Tensor, chunk: Chunk, dtype: torch.dtype) -> Tensor:
    """relu(rows @ up) of a chunk, rounded to `dtype`, so that recomputed and kept activations are the same bits."""
    return rows_times(rows_ND, up_EDF[chunk.experts], chunk.sizes).relu_().to(dtype)
