"""Every launch of one visit's FFN, SwitchHead maps and routers alone, by the names that `bench roofline` has for them.

Shape suffixes: T tokens, Q routes, E experts, D model width, F expert width, R rows in, O rows out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.map_forms import rows_of_routes
from benchmarks.timing import Form
from kernels.counting_sort import Plan, counting_sort
from kernels.expert_outer_products import expert_outer_products
from kernels.gather_matmul import Dot, gather_matmul
from kernels.router_triton import route_triton
from kernels.sum_by_row import row_ends, sum_by_row
from kernels.tiles import tile_rows
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.moe_config import SigmaMoEConfig


class Routes(NamedTuple):
    """Random ones: experts, their plan, rows and weights in expert order, and where the routes of each row in and out end."""

    expert_Q: Tensor
    plan: Plan
    in_Q: Tensor
    out_Q: Tensor
    scale_Q: Tensor
    in_ends: Tensor
    out_ends: Tensor


def operations(config: ModelConfig, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """Forms by name, each one launch or, for the sort, four; they write over their results."""
    feed_forward, attention = config.feed_forward, config.attention
    assert isinstance(feed_forward, SigmaMoEConfig) and isinstance(attention, SwitchHeadConfig)
    width, heads = config.d_model, attention.n_heads
    found = {f"ffn {name}": form for name, form in layer_operations(width, feed_forward, tokens, dtype, device).items()}
    taken, matrices = heads * attention.top_k, heads * attention.n_experts
    for title, rows_in, rows_out, d_in, d_out in (
        ("value", 1, heads, width, attention.d_head),
        ("output", heads, 1, attention.d_head, width),
    ):
        routes = draw_routes(tokens, taken, matrices, (rows_in, rows_out), dtype, device)
        found |= {f"{title} {name}": form for name, form in _map(routes, matrices, d_in, d_out, dtype, device).items()}
    for title, routers, n_experts, top_k in (
        ("ffn", 1, feed_forward.n_experts, feed_forward.top_k),
        ("attention", heads, attention.n_experts, attention.top_k),
    ):
        found |= {f"{title} {name}": form for name, form in _router(tokens, routers, n_experts, top_k, device).items()}
    return found


def draw_routes(tokens: int, taken: int, n_experts: int, rows: tuple[int, int], dtype: torch.dtype, device: str) -> Routes:
    """`taken` routes a token, which has `rows` rows in and out; experts drawn evenly and not kept distinct, which changes no time."""
    expert_Q = torch.randint(n_experts, (tokens * taken,), device=device)
    plan = counting_sort(expert_Q, n_experts, tile_rows(dtype))
    in_Q, out_Q = (rows_of_routes(tokens, taken, many, device) for many in rows)
    scale_Q = torch.rand(tokens * taken, device=device)
    ends = (row_ends(row_Q, tokens * many) for row_Q, many in zip((in_Q, out_Q), rows, strict=True))
    return Routes(expert_Q, plan, in_Q[plan.order_Q], out_Q[plan.order_Q], scale_Q, *ends)


def layer_operations(width: int, config: SigmaMoEConfig, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """Those of the FFN."""
    n_experts, narrow = config.n_experts, config.d_expert
    routes = draw_routes(tokens, config.top_k, n_experts, (1, 1), dtype, device)
    plan, from_Q, order_Q, scale_Q = routes.plan, routes.in_Q, routes.plan.order_Q, routes.scale_Q
    x_TD, dy_TD = _normal(2, tokens, width, dtype=dtype, device=device)
    up_EDF, down_EFD = (
        _normal(n_experts, width, narrow, dtype=dtype, device=device),
        _normal(n_experts, narrow, width, dtype=dtype, device=device),
    )
    hidden_QF, dhidden_QF = _normal(2, len(order_Q), narrow, dtype=dtype, device=device)
    part_QD = _normal(len(order_Q), width, dtype=dtype, device=device)
    dot = Dot(hidden_QF, None, torch.empty_like(scale_Q), gate=True)
    up_EFD, down_EDF = up_EDF.transpose(1, 2), down_EFD.transpose(1, 2)
    return {
        "sort": lambda: counting_sort(routes.expert_Q, n_experts, plan.tile_rows),
        "up": lambda: gather_matmul(x_TD, up_EDF, plan, dhidden_QF, from_Q=from_Q, relu=True),
        "down": lambda: gather_matmul(hidden_QF, down_EFD, plan, part_QD, to_Q=order_Q, scale_Q=scale_Q),
        "sum": lambda: sum_by_row(part_QD, routes.out_ends),
        "d hidden": lambda: gather_matmul(dy_TD, down_EDF, plan, dhidden_QF, from_Q=from_Q, scale_Q=scale_Q, dot=dot),
        "d up": lambda: expert_outer_products(x_TD, hidden_QF, plan, x_Q=from_Q),
        "d down": lambda: expert_outer_products(hidden_QF, dy_TD, plan, y_Q=from_Q, scale_Q=scale_Q),
        "d x": lambda: gather_matmul(hidden_QF, up_EFD, plan, part_QD, to_Q=order_Q),
        "d sum": lambda: sum_by_row(part_QD, routes.in_ends),
    }


def _map(routes: Routes, matrices: int, d_in: int, d_out: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    plan, order_Q, scale_Q = routes.plan, routes.plan.order_Q, routes.scale_Q
    x_RD, dy_OF = (
        _normal(len(ends), width, dtype=dtype, device=device) for ends, width in ((routes.in_ends, d_in), (routes.out_ends, d_out))
    )
    w_EDF = _normal(matrices, d_in, d_out, dtype=dtype, device=device)
    part_QD, part_QF = (_normal(len(order_Q), width, dtype=dtype, device=device) for width in (d_in, d_out))
    dot, w_EFD = Dot(x_RD, routes.in_Q, torch.empty_like(scale_Q), gate=False), w_EDF.transpose(1, 2)
    return {
        "sort": lambda: counting_sort(routes.expert_Q, matrices, plan.tile_rows),
        "product": lambda: gather_matmul(x_RD, w_EDF, plan, part_QF, from_Q=routes.in_Q, to_Q=order_Q, scale_Q=scale_Q),
        "sum": lambda: sum_by_row(part_QF, routes.out_ends),
        "d x": lambda: gather_matmul(dy_OF, w_EFD, plan, part_QD, from_Q=routes.out_Q, to_Q=order_Q, scale_Q=scale_Q, dot=dot),
        "d w": lambda: expert_outer_products(x_RD, dy_OF, plan, x_Q=routes.in_Q, y_Q=routes.out_Q, scale_Q=scale_Q),
        "d sum": lambda: sum_by_row(part_QD, routes.in_ends),
    }


def _router(tokens: int, routers: int, n_experts: int, top_k: int, device: str) -> dict[str, Form]:
    """In sequences of 1,024 tokens, or one."""
    logits = _normal(max(tokens // 1024, 1), min(tokens, 1024), routers, n_experts, dtype=torch.float32, device=device)
    chosen, weight, sums, _ = route_triton(logits, top_k)
    return {
        "router": lambda: route_triton(logits, top_k),
        "d router": lambda: torch.ops.mootron.route_backward(logits, chosen, weight, sums),
    }


def _normal(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return (torch.randn(*shape, device=device) / shape[-1] ** 0.5).to(dtype)
