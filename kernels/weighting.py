"""Rows times their routing weights, and the two ways back. Shape suffixes: Q routes, F width."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted(x_QF: Tensor, weight_Q: Tensor) -> Tensor:
    """weight * x in x's dtype: multiplied in the wider of the two types and rounded once."""
    return (x_QF * weight_Q[:, None]).to(x_QF.dtype)


def row_dot(a_QF: Tensor, b_QF: Tensor) -> Tensor:
    """Dot product of each pair of rows [Q], added in at least float32."""
    wide = torch.promote_types(a_QF.dtype, torch.float32)
    return (a_QF.to(wide) * b_QF.to(wide)).sum(-1)
