"""A linear map chosen by route (SwitchHead's value and output, one half of an expert layer) beside other forms of equal work.

Forms as in benchmarks/kernel_forms.py. Shape suffixes: T tokens, H heads, K matrices of a head, Q routes, R rows in, O rows out,
E matrices in all, D, F widths.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_forms import Leaves, both_ways, by_expert, choose
from benchmarks.timing import Form
from kernels.routed_linear import routed_linear


class MapShape(NamedTuple):
    """Of a linear map chosen by route: a token takes `top_k` of `n_experts` matrices for each of `heads`.

    It has `rows_in` rows and is answered with `rows_out`: SwitchHead's value has 1 and `heads`, its output `heads` and 1. Where
    every route has a row out of its own, no weight is multiplied.
    """

    d_in: int
    d_out: int
    heads: int
    n_experts: int
    top_k: int
    rows_in: int
    rows_out: int

    @property
    def taken(self) -> int:
        return self.heads * self.top_k


def map_forms(shape: MapShape, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """The map's forward and backward by our kernels, by a dense map and by grouped_mm."""
    draw = Leaves(dtype, device)
    x_RD, w_EDF = draw(tokens * shape.rows_in, shape.d_in), draw(shape.heads * shape.n_experts, shape.d_in, shape.d_out)
    dy_OF = draw(tokens * shape.rows_out, shape.d_out).detach()
    expert_THK = choose(tokens * shape.heads, shape.n_experts, shape.top_k, device).view(tokens, shape.heads, shape.top_k)
    expert_Q = (expert_THK + torch.arange(shape.heads, device=device)[:, None] * shape.n_experts).flatten()
    in_Q, out_Q = (rows_of_routes(tokens, shape.taken, rows, device) for rows in (shape.rows_in, shape.rows_out))
    weight_Q = torch.ones(tokens * shape.taken, device=device)
    if shape.rows_out < shape.taken:
        weight_Q.uniform_().requires_grad_()
    leaves = [x_RD, w_EDF] + [weight_Q] * weight_Q.requires_grad

    def ours() -> Tensor:
        return routed_linear(x_RD, w_EDF, in_Q, out_Q, expert_Q, weight_Q, len(dy_OF))

    def grouped() -> Tensor:
        order_Q, ends_E = by_expert(expert_Q, len(w_EDF))
        answer_QF = F.grouped_mm(x_RD[in_Q[order_Q]], w_EDF, offs=ends_E) * weight_Q[order_Q, None].to(dtype)
        return torch.zeros_like(dy_OF).index_add(0, out_Q[order_Q], answer_QF)

    dense = _dense_map(shape, tokens, draw)
    return {"ours": both_ways(ours, leaves, dy_OF), "dense": dense, "grouped_mm": both_ways(grouped, leaves, dy_OF)}


def _dense_map(shape: MapShape, tokens: int, draw: Leaves) -> Form:
    wide_in, wide_out = (shape.taken * shape.d_in, shape.d_out) if shape.rows_out == 1 else (shape.d_in, shape.taken * shape.d_out)
    x_TD, w_FD = draw(tokens, wide_in), draw(wide_out, wide_in)
    return both_ways(lambda: F.linear(x_TD, w_FD), [x_TD, w_FD], draw(tokens, wide_out).detach())


def rows_of_routes(tokens: int, taken: int, rows: int, device: str) -> Tensor:
    """Each route's row, ascending, where a token has `rows` and its `taken` routes are spread evenly over them."""
    route_Q = torch.arange(tokens * taken, device=device)
    return route_Q // taken * rows + route_Q % taken * rows // taken
