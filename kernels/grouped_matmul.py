"""Each run of rows times its own matrix: the matmul under every expert layer.

Shape suffixes: Q rows in expert order, D width in, F width out, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
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
    runs = [x_QD[start:stop] @ w_DF for (start, stop), w_DF in zip(pairwise([0, *ends_E.tolist()]), w_EDF, strict=True)]
    return torch.cat([*runs, x_QD.new_zeros(0, w_EDF.shape[2])])


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_QD: Tensor, w_EDF: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_QD, w_EDF)
        ctx.sizes = [stop - start for start, stop in pairwise([0, *ends_E.tolist()])]
        return rows_times(x_QD.to(arithmetic_dtype(x_QD)), w_EDF, ctx.sizes).to(x_QD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_QF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_QD, w_EDF = ctx.saved_tensors
        wide_dy_QF = dy_QF.to(arithmetic_dtype(x_QD))
        dx_QD = dw_EDF = None
        if ctx.needs_input_grad[0]:
            dx_QD = rows_times(wide_dy_QF, w_EDF.transpose(1, 2), ctx.sizes).to(x_QD.dtype)
        if ctx.needs_input_grad[1]:
            dw_EDF = torch.empty_like(w_EDF, memory_format=torch.contiguous_format)
            outer_products(x_QD.to(wide_dy_QF.dtype), wide_dy_QF, ctx.sizes, out_EDF=dw_EDF)
        return dx_QD, dw_EDF, None


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The type to multiply in: x's own, but float32 for bfloat16 on a CPU without bfloat16 instructions (a third of the time there)."""
    emulated = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu_multiplies_bfloat16()
    return torch.float32 if emulated else x.dtype


def rows_times(x_QD: Tensor, w_EDF: Tensor, sizes: list[int]) -> Tensor:
    """`grouped_matmul` by sizes and without autograd, in x's dtype; `w_EDF` may be of a narrower one, or a transposed view.

    One library call an expert into its place in the result: on a CPU this is within a tenth of `torch.nn.functional.grouped_mm`,
    which takes no float64, no d_model of 412, and allocates.
    """
    y_QF = x_QD.new_empty(x_QD.shape[0], w_EDF.shape[2])
    same, wide_DF = w_EDF.dtype == x_QD.dtype, None
    for x, w, y in zip(x_QD.split(sizes), w_EDF.unbind(0), y_QF.split(sizes), strict=True):
        if not same:
            wide_DF = torch.empty_like(w, dtype=x_QD.dtype) if wide_DF is None else wide_DF
            w = wide_DF.copy_(w)
        torch.mm(x, w, out=y)
    return y_QF


def outer_products(x_QD: Tensor, dy_QF: Tensor, sizes: list[int], out_EDF: Tensor) -> None:
    """out_EDF[e] = x_e^T dy_e, added over each run's rows in x's dtype or wider, rounded once to out's; zeros for an empty run."""
    same = out_EDF.dtype == x_QD.dtype
    wide_DF = None if same else x_QD.new_empty(out_EDF.shape[1:])
    for x, dy, out in zip(x_QD.split(sizes), dy_QF.split(sizes), out_EDF.unbind(0), strict=True):
        torch.mm(x.t(), dy, out=out if wide_DF is None else wide_DF)
        if wide_DF is not None:
            out.copy_(wide_DF)


@cache
def _cpu_multiplies_bfloat16() -> bool:
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
