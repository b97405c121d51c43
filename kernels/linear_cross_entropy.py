"""Cross-entropy of a linear map's outputs without keeping them: rows in chunks, their gradients formed while the logits are there.

The logits of 65,536 tokens over 8,000 words are 2 GB in float32, and autograd keeps them twice. Here a chunk's logits become its
share of the three gradients at once, as in Liger's fused form (arXiv 2410.10989): no product is computed twice.

Shape suffixes: N rows, D model width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.grouped_matmul import arithmetic_dtype
from kernels.rows import wide_dtype

ENTRIES_A_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Logits at a time: what stays in a CPU's cache; what fills an accelerator (128 MB in float32)."""


def linear_cross_entropy(x_ND: Tensor, w_VD: Tensor, b_V: Tensor, target_N: Tensor) -> Tensor:
    """sum_n -ln softmax(x_ND[n] @ w_VD^T + b_V)[target_N[n]], in nats, in at least float32. Differentiable in x, w and b.

    Args:
        x_ND: rows. w_VD, b_V: of one dtype with x. target_N: int64 in 0..V-1.
    """
    return _LinearCrossEntropy.apply(x_ND, w_VD, b_V, target_N)


def linear_cross_entropy_reference(x_ND: Tensor, w_VD: Tensor, b_V: Tensor, target_N: Tensor) -> Tensor:
    """`linear_cross_entropy` by torch's operators, which keep all logits."""
    logits_NV = F.linear(x_ND, w_VD, b_V)
    return F.cross_entropy(logits_NV.to(wide_dtype(logits_NV.dtype)), target_N, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w_VD: Tensor, b_V: Tensor, target_N: Tensor) -> Tensor:
        dtype, wide = arithmetic_dtype(x_ND), wide_dtype(x_ND.dtype)
        wanted = any(ctx.needs_input_grad[:3])
        rows = max(64, ENTRIES_A_CHUNK[x_ND.device.type] // w_VD.shape[0])
        data_VD, bias_V = w_VD.to(dtype), b_V.to(dtype)
        loss = torch.zeros((), dtype=wide, device=x_ND.device)
        if wanted:
            dx_ND = torch.empty_like(x_ND, memory_format=torch.contiguous_format)
            dw_VD, db_V = torch.zeros_like(w_VD, dtype=wide), torch.zeros_like(b_V, dtype=wide)
        for number, (x_CD, target_C) in enumerate(zip(x_ND.split(rows), target_N.split(rows), strict=True)):
            data_CD = x_CD.to(dtype)
            logits_CV = torch.addmm(bias_V, data_CD, data_VD.t()).to(wide)
            log_sum_C1 = logits_CV.logsumexp(1, keepdim=True)
            loss += (log_sum_C1 - logits_CV.gather(1, target_C[:, None])).sum()
            if wanted:
                dlogits_CV = logits_CV.sub_(log_sum_C1).exp_()
                dlogits_CV.scatter_add_(1, target_C[:, None], dlogits_CV.new_full((len(target_C), 1), -1.0))
                db_V += dlogits_CV.sum(0)
                narrow_CV = dlogits_CV.to(dtype)
                dx_ND[number * rows : (number + 1) * rows] = narrow_CV @ data_VD
                dw_VD += narrow_CV.t() @ data_CD
        if wanted:
            ctx.save_for_backward(dx_ND, dw_VD.to(w_VD.dtype), db_V.to(b_V.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        dx_ND, dw_VD, db_V = ctx.saved_tensors
        # Not in place: these are kept for a second backward of a graph that is retained.
        return dx_ND * dloss.to(dx_ND.dtype), dw_VD * dloss.to(dw_VD.dtype), db_V * dloss.to(db_V.dtype), None
