"""Every Triton kernel beside its torch reference on a shape drawn from a seed: for the tests and for `soak kernels`.

A case calls the kernel on float32 inputs and its reference on the same in float64, and gives pairs to compare. What a kernel must
not read, lies poisoned: rows past the last route and gaps between rows are NaN.

Shape suffixes: Q routes, E experts, D and F widths, S rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.kernel_draw import WIDTHS, Draw, Pair, differentiated
from benchmarks.peer_cases import gather_dot_case, gather_sum_case, peer_case, segment_sums_case
from benchmarks.stream_cases import norm_read_case, route_case
from kernels import tile_order as tile_order_file
from kernels.counting_sort import Plan, counting_sort, counting_sort_reference
from kernels.expert_mlp import expert_mlp_reference
from kernels.expert_mlp_triton import FORMS, expert_mlp_triton
from kernels.expert_outer_products import expert_outer_products, expert_outer_products_reference
from kernels.fused_expert_mlp import WIDEST_EXPERT, fused_expert_mlp, fused_expert_mlp_reference
from kernels.gather_matmul import Dot, gather_matmul, gather_matmul_reference
from kernels.routed_linear import routed_linear_reference
from kernels.routed_linear_triton import routed_linear_triton
from kernels.sum_by_row import row_ends, sum_by_row, sum_by_row_reference
from kernels.tile_order import tile_order, tile_order_reference

TILE_ROWS = 32


def sort_case(draw: Draw) -> Iterator[Pair]:
    n_experts = draw.one_of((1, 2, 5, 31, 155, 600))
    # The longer ones have more blocks than one turn of the scan takes.
    expert_Q = draw.experts(draw.one_of((draw.number(0, 700), draw.number(8200, 9000))), n_experts)
    tile_rows = draw.one_of((16, 32, 128))
    found, expected = counting_sort(expert_Q, n_experts, tile_rows), counting_sort_reference(expert_Q, n_experts, tile_rows)
    for name in ("order_Q", "ends_E", "tile_ends_E"):
        yield Pair(name, getattr(found, name), getattr(expected, name))


def order_case(draw: Draw) -> Iterator[Pair]:
    n_experts = draw.one_of((1, 2, 5, 31))
    plan = counting_sort_reference(draw.experts(draw.number(0, 1500), n_experts), n_experts, draw.one_of((16, 32)))
    windows = draw.one_of((1, 2, 3, 9))
    yield Pair("tile_P", tile_order(plan, windows), tile_order_reference(plan, windows))


def plain_case(draw: Draw) -> Iterator[Pair]:
    plan, n_routes, n_experts = _plan(draw)
    d_in, d_out, n_rows = draw.one_of(WIDTHS), draw.one_of(WIDTHS), draw.number(1, 40)
    x_SD, w_EDF = draw.normal(n_rows, d_in), draw.normal(n_experts, d_in, d_out)
    if draw.number(0, 1):
        w_EDF = w_EDF.transpose(1, 2).contiguous().transpose(1, 2)
    options: dict[str, Any] = {"from_Q": draw.some_rows(n_routes, n_rows), "relu": bool(draw.number(0, 1))}
    options |= {"to_Q": draw.places(n_routes)} if draw.number(0, 1) else {}
    options |= {"scale_Q": draw.weights(n_routes)} if draw.number(0, 1) else {}
    found, expected = draw.unwritten(n_routes, d_out)
    gather_matmul(x_SD, w_EDF, plan, found, **options, tile_P=_some_order(draw, plan))
    gather_matmul_reference(x_SD.double(), w_EDF.double(), plan, expected, **options)
    yield Pair("out", found, expected)


def dotted_case(draw: Draw) -> Iterator[Pair]:
    plan, n_routes, n_experts = _plan(draw)
    d_in, d_out, n_rows = draw.one_of(WIDTHS), draw.one_of(WIDTHS), draw.number(1, 40)
    x_SD, w_EDF, other = draw.normal(n_rows, d_in), draw.normal(n_experts, d_in, d_out), draw.normal(n_routes, d_out)
    options: dict[str, Any] = {"from_Q": draw.some_rows(n_routes, n_rows), "to_Q": draw.places(n_routes), "scale_Q": draw.weights(n_routes)}
    other_Q = draw.places(n_routes) if draw.number(0, 1) else None
    gate = bool(draw.number(0, 1))
    found, expected = draw.unwritten(n_routes, d_out)
    dot_Q, expected_dot_Q = draw.unwritten(n_routes)
    gather_matmul(x_SD, w_EDF, plan, found, **options, dot=Dot(other, other_Q, dot_Q, gate), tile_P=_some_order(draw, plan))
    dot = Dot(other.double(), other_Q, expected_dot_Q, gate)
    gather_matmul_reference(x_SD.double(), w_EDF.double(), plan, expected, **options, dot=dot)
    yield Pair("out", found, expected)
    yield Pair("dot", dot_Q, expected_dot_Q)


def fused_case(draw: Draw) -> Iterator[Pair]:
    plan, n_routes, n_experts = _plan(draw)
    d_model, d_expert, n_rows = draw.one_of(WIDTHS), draw.one_of((1, 16, 48, WIDEST_EXPERT)), draw.number(1, 40)
    x_SD, first_EDF = draw.normal(n_rows, d_model), draw.normal(n_experts, d_model, d_expert) / d_model**0.5
    second_EFD = draw.normal(n_experts, d_model, d_expert).transpose(1, 2)
    options: dict[str, Any] = {"from_Q": draw.some_rows(n_routes, n_rows), "to_Q": draw.places(n_routes), "scale_Q": draw.weights(n_routes)}
    (middle, wide_middle), (out, wide_out) = draw.unwritten(n_routes, d_expert), draw.unwritten(n_routes, d_model)
    (dot_Q, wide_dot_Q), other = draw.unwritten(n_routes), draw.normal(n_routes, d_expert)
    dotted = bool(draw.number(0, 1))
    dot, wide_dot = (Dot(o, None, d, True) if dotted else None for o, d in ((other, dot_Q), (other.double(), wide_dot_Q)))
    fused_expert_mlp(x_SD, first_EDF, second_EFD, plan, middle, out, **options, dot=dot, tile_P=_some_order(draw, plan))
    wide = (x_SD.double(), first_EDF.double(), second_EFD.double())
    fused_expert_mlp_reference(*wide, plan, wide_middle, wide_out, **options, dot=wide_dot)
    yield Pair("middle", middle, wide_middle)
    yield Pair("out", out, wide_out)
    if dotted:
        yield Pair("dot", dot_Q, wide_dot_Q)


def outer_case(draw: Draw) -> Iterator[Pair]:
    plan, n_routes, _ = _plan(draw)
    n_rows = draw.number(1, 40)
    x_SD, y_QF = draw.normal(n_rows, draw.one_of(WIDTHS)), draw.normal(n_routes, draw.one_of(WIDTHS))
    options: dict[str, Any] = {"x_Q": draw.some_rows(n_routes, n_rows)}
    options |= {"y_Q": draw.places(n_routes)} if draw.number(0, 1) else {}
    options |= {"scale_Q": draw.weights(n_routes)} if draw.number(0, 1) else {}
    found = expert_outer_products(x_SD, y_QF, plan, **options, by_columns=bool(draw.number(0, 1)))
    yield Pair("out", found, expert_outer_products_reference(x_SD.double(), y_QF.double(), plan, **options))


def sum_case(draw: Draw) -> Iterator[Pair]:
    n_rows = draw.number(1, 40)
    ends_S = row_ends(draw.rows(draw.number(0, 200), n_rows), n_rows)
    x_QD = draw.normal(int(ends_S[-1]), draw.one_of(WIDTHS))
    yield Pair("out", sum_by_row(x_QD, ends_S), sum_by_row_reference(x_QD.double(), ends_S))


def expert_mlp_case(draw: Draw) -> Iterator[Pair]:
    form = draw.one_of(list(FORMS))
    n_rows, n_experts = draw.number(0, 30), draw.one_of((1, 3, 9))
    d_model, d_expert = draw.one_of(WIDTHS), draw.one_of((1, 16, 48) if form.startswith("fused") else (1, 16, 48, 130))
    row_Q = draw.rows(draw.number(0, 120) if n_rows else 0, n_rows)
    expert_Q, recompute = draw.experts(len(row_Q), n_experts), bool(draw.number(0, 1))
    up, down = draw.normal(n_experts, d_model, d_expert) / d_model**0.5, draw.normal(n_experts, d_expert, d_model) / d_expert**0.5
    leaves = [draw.normal(n_rows, d_model), draw.weights(len(row_Q)), up, down]
    cotangent = draw.normal(n_rows, d_model)
    with mock.patch.object(tile_order_file, "WINDOW_BYTES", 64):  # several windows, however few the rows
        yield from list(
            differentiated(
                lambda x, weight, up, down: expert_mlp_triton(x, row_Q, expert_Q, weight, up, down, recompute, form),
                lambda x, weight, up, down: expert_mlp_reference(x, row_Q, expert_Q, weight, up, down),
                leaves,
                cotangent,
            )
        )


def routed_linear_case(draw: Draw) -> Iterator[Pair]:
    n_in, n_out, n_experts = draw.number(1, 30), draw.number(1, 30), draw.one_of((1, 3, 9))
    d_in, d_out, n_routes = draw.one_of(WIDTHS), draw.one_of(WIDTHS), draw.number(0, 120)
    in_row_Q, out_row_Q, expert_Q = draw.rows(n_routes, n_in), draw.rows(n_routes, n_out), draw.experts(n_routes, n_experts)
    leaves = [draw.normal(n_in, d_in), draw.normal(n_experts, d_in, d_out) / d_in**0.5, draw.weights(n_routes)]
    yield from differentiated(
        lambda x, w, weight: routed_linear_triton(x, w, in_row_Q, out_row_Q, expert_Q, weight, n_out),
        lambda x, w, weight: routed_linear_reference(x, w, in_row_Q, out_row_Q, expert_Q, weight, n_out),
        leaves,
        draw.normal(n_out, d_out),
    )


CASES: dict[str, Callable[[Draw], Iterator[Pair]]] = {
    "norm_read": norm_read_case,
    "route": route_case,
    "counting_sort": sort_case,
    "tile_order": order_case,
    "gather_matmul": plain_case,
    "gather_matmul, dotted": dotted_case,
    "fused_expert_mlp": fused_case,
    "expert_outer_products": outer_case,
    "sum_by_row": sum_case,
    "expert_mlp": expert_mlp_case,
    "routed_linear": routed_linear_case,
    "segment_sums": segment_sums_case,
    "gather_dot": gather_dot_case,
    "gather_sum": gather_sum_case,
    "peer": peer_case,
}


def _plan(draw: Draw) -> tuple[Plan, int, int]:
    """A plan of drawn routes by the reference, their number and that of the experts."""
    n_routes, n_experts = draw.number(0, 100), draw.one_of((1, 2, 7))
    return counting_sort_reference(draw.experts(n_routes, n_experts), n_experts, TILE_ROWS), n_routes, n_experts


def _some_order(draw: Draw, plan: Plan) -> Tensor | None:
    """An order of tiles, or none."""
    windows = draw.number(0, 3)
    return tile_order_reference(plan, windows) if windows else None
