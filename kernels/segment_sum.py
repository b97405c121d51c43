"""Sum of picked rows into output rows: the way back from routes to tokens.

A scatter with atomic adds would give other bits on every run; here each output row gathers its own terms in a fixed
order instead.

Shape suffixes: Q rows to add up, S sums, D width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def segment_sum(x_QD: Tensor, pick_Q: Tensor, ends_S: Tensor) -> Tensor:
    """y_SD[s] = sum of x_QD[pick_Q[i]] for i in ends_S[s-1]..ends_S[s]-1; added in at least float32, returned in x's dtype.

    Not differentiable by itself: the operations of this folder write their own backward.

    Args:
        x_QD: rows [Q, D]. pick_Q: int64 [any number]. ends_S: int64 [S], ascending; equal neighbours give a row of zeros.
    """
    n_sums, width = ends_S.shape[0], x_QD.shape[1]
    if n_sums == 0 or pick_Q.shape[0] == 0 or width == 0:
        return x_QD.new_zeros(n_sums, width)
    offsets = torch.cat([ends_S.new_zeros(1), ends_S])
    return torch.embedding_bag(x_QD, pick_Q, offsets, mode=0, include_last_offset=True)[0]


def segment_sum_reference(x_QD: Tensor, pick_Q: Tensor, ends_S: Tensor) -> Tensor:
    """`segment_sum`, a sum at a time."""
    wide_QD = x_QD.to(torch.promote_types(x_QD.dtype, torch.float32))
    starts = [0, *ends_S.tolist()]
    sums = [wide_QD[pick_Q[start:stop]].sum(0) for start, stop in pairwise(starts)]
    return torch.stack(sums).to(x_QD.dtype) if sums else x_QD.new_zeros(0, x_QD.shape[1])
