"""Both products of an expert, one kernel each: the layer between them is written to memory and read again.

What it computes, forward and backward, stands at the head of `fused_expert_mlp.py`, which takes the same arguments.

Shape suffixes: Q routes, E experts, D model width, F expert width, S rows of x, P programs.
"""

from __future__ import annotations

from torch import Tensor

from kernels.counting_sort import Plan
from kernels.gather_matmul import Dot, gather_matmul


def two_kernel_expert_mlp(
    x_SD: Tensor,
    first_EDF: Tensor,
    second_EFD: Tensor,
    plan: Plan,
    middle_QF: Tensor,
    out_QD: Tensor,
    *,
    from_Q: Tensor,
    to_Q: Tensor,
    scale_Q: Tensor,
    dot: Dot | None = None,
    tile_P: Tensor | None = None,
) -> None:
    """Write `middle_QF` and `out_QD`; backward with `dot`. The weight comes last forward and first backward, where its gradient is made."""
    before_Q, after_Q = (None, scale_Q) if dot is None else (scale_Q, None)
    gather_matmul(x_SD, first_EDF, plan, middle_QF, from_Q=from_Q, scale_Q=before_Q, relu=dot is None, dot=dot, tile_P=tile_P)
    gather_matmul(middle_QF, second_EFD, plan, out_QD, to_Q=to_Q, scale_Q=after_Q)
