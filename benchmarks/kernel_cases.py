"""Every Triton kernel beside its torch reference on a shape drawn from a seed: for the tests and for `soak kernels`.

A case calls the kernel on float32 inputs and its reference on the same in float64, and gives pairs to compare. What a kernel must
not read, lies poisoned: rows past the last route and gaps between rows are NaN.

Shape suffixes: Q routes, E experts, D and F widths, S rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from kernels import tile_order as tile_order_file
from kernels.counting_sort import Plan, counting_sort, counting_sort_reference
from kernels.expert_mlp import expert_mlp_reference
from kernels.expert_mlp_triton import FORMS, expert_mlp_triton
from kernels.expert_outer_products import expert_outer_products, expert_outer_products_reference
from kernels.fused_expert_mlp import WIDEST_EXPERT, fused_expert_mlp, fused_expert_mlp_reference
from kernels.gather_matmul import Dot, gather_matmul, gather_matmul_reference
from kernels.norm_read import Read, norm_read_reference
from kernels.norm_read_triton import norm_read_triton
from kernels.peer import ACTIVATIONS, peer, peer_reference
from kernels.routed_linear import routed_linear_reference
from kernels.routed_linear_triton import routed_linear_triton
from kernels.router_triton import route_reference, route_triton
from kernels.segment_sums import segment_sums_reference
from kernels.segment_sums_triton import segment_sums_triton
from kernels.sum_by_row import row_ends, sum_by_row, sum_by_row_reference
from kernels.table_rows import gather_dot, gather_dot_reference, gather_sum, gather_sum_reference
from kernels.tile_order import tile_order, tile_order_reference

TILE_ROWS = 32
WIDTHS = (1, 8, 16, 82, 130, 412)


class Pair(NamedTuple):
    """A kernel's tensor and what it should be; integers are to be equal, floats within 1e-5 of the largest entry."""

    name: str
    found: Tensor
    expected: Tensor

    def error(self) -> float:
        """Largest difference over the largest value; for integers 0 or infinity. A NaN is infinity."""
        if self.found.shape != self.expected.shape or not self.found.is_floating_point():
            return 0.0 if torch.equal(self.found, self.expected) else torch.inf
        if self.found.numel() == 0:
            return 0.0
        found, expected = self.found.double(), self.expected.double()
        error = float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
        return error if error == error else torch.inf


class Draw:
    """Numbers and tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def number(self, least: int, most: int) -> int:
        """An integer, both ends included."""
        return int(torch.randint(least, most + 1, (), generator=self._generator))

    def one_of(self, choices: Any) -> Any:
        """One of a sequence."""
        return choices[self.number(0, len(choices) - 1)]

    def normal(self, *shape: int) -> Tensor:
        """Float32 with gaps of NaN between the rows, so that a wrong stride or a missing mask shows."""
        gap = self.number(0, 3)
        block = torch.full((*shape[:-1], shape[-1] + gap), torch.nan)
        block[..., : shape[-1]] = torch.randn(*shape, generator=self._generator)
        return block.to(self._device)[..., : shape[-1]]

    def unwritten(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Where a kernel writes, float32, and where its reference does, float64: NaN until then."""
        return tuple(torch.full(shape, torch.nan, dtype=dtype, device=self._device) for dtype in (torch.float32, torch.float64))  # type: ignore[return-value]

    def weights(self, n_routes: int) -> Tensor:
        """Routing weights in 0..1."""
        return torch.rand(n_routes, generator=self._generator).to(self._device)

    def experts(self, n_routes: int, n_experts: int) -> Tensor:
        """Experts of routes under one of four loads: even, skewed, one has all, the first ones have none."""
        load = self.one_of(("even", "skewed", "one has all", "first ones empty"))
        if load == "one has all":
            return torch.full((n_routes,), self.number(0, n_experts - 1), device=self._device)
        first = n_experts // 2 if load == "first ones empty" else 0
        draw = torch.rand(n_routes, generator=self._generator) ** (4 if load == "skewed" else 1)
        return first + (draw * (n_experts - first)).long().to(self._device)

    def rows(self, n_routes: int, n_rows: int) -> Tensor:
        """Ascending rows; some have no route."""
        return torch.randint(max(n_rows, 1), (n_routes,), generator=self._generator).sort().values.to(self._device)

    def some_rows(self, n_routes: int, n_rows: int) -> Tensor:
        """Rows in any order."""
        return torch.randint(n_rows, (n_routes,), generator=self._generator).to(self._device)

    def places(self, n_routes: int) -> Tensor:
        """A permutation."""
        return torch.randperm(n_routes, generator=self._generator).to(self._device)


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
            _differentiated(
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
    yield from _differentiated(
        lambda x, w, weight: routed_linear_triton(x, w, in_row_Q, out_row_Q, expert_Q, weight, n_out),
        lambda x, w, weight: routed_linear_reference(x, w, in_row_Q, out_row_Q, expert_Q, weight, n_out),
        leaves,
        draw.normal(n_out, d_out),
    )


def route_case(draw: Draw) -> Iterator[Pair]:
    shape = draw.number(0, 3), draw.one_of((1, 5, 40)), draw.one_of((1, 3)), draw.one_of((1, 2, 31, 155, 600))
    top_k = draw.one_of((1, min(2, shape[3]), min(12, shape[3])))
    logits_BTME, dsum_BME = draw.normal(*shape), draw.normal(shape[0], *shape[2:])
    dweight = draw.normal(*shape[:3], top_k)
    scores_BTME = None
    if draw.number(0, 1) and top_k < shape[3]:  # expert dropout: some masked, of which some may have to be taken
        scores_BTME = logits_BTME.masked_fill(draw.normal(*shape) > 0.7, -torch.inf)
    chosen = route_triton(draw.normal(*shape), top_k)[0] if draw.number(0, 3) == 0 else None
    found = route_triton(logits_BTME.requires_grad_(), top_k, scores_BTME, chosen)
    wide = logits_BTME.detach().double().requires_grad_()
    expected = route_reference(wide, top_k, None if scores_BTME is None else scores_BTME.double(), chosen)
    for name, mine, theirs in zip(("expert", "weight", "softmax sum"), found, expected, strict=True):
        yield Pair(name, mine.detach(), theirs.detach())
    for result, dtype in ((found, torch.float32), (expected, torch.float64)):
        torch.autograd.backward(result[1:], (dweight.to(dtype), dsum_BME.to(dtype)))
    assert logits_BTME.grad is not None and wide.grad is not None
    yield Pair("gradient", logits_BTME.grad, wide.grad)


def norm_read_case(draw: Draw) -> Iterator[Pair]:
    # Of width 1 the gain's gradient is 0, which has no relative error; a test of its own has it.
    width, n_rows = draw.one_of(WIDTHS[1:]), draw.number(0, 150)
    # The interpreter does not round to bfloat16: a float64 stream is to float32 weights what a float32 one is to bfloat16.
    stream = draw.normal(n_rows, width).to(draw.one_of((torch.float32, torch.float64)))
    leaves = [stream, draw.normal(width) + 1.0, draw.normal(width)]
    leaves += [draw.normal(n_rows, width)] if draw.number(0, 1) else []
    data = bool(draw.number(0, 1))

    def joined(operation: Callable[..., Read]) -> Callable[..., Tensor]:
        def results(x: Tensor, gain: Tensor, bias: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.cat([tensor for tensor in operation(x, y, gain, bias, 1e-5, data) if tensor is not None])

        return results

    cotangent = draw.normal((3 if data else 2) * n_rows, width).to(stream.dtype)
    yield from _differentiated(joined(norm_read_triton), joined(norm_read_reference), leaves, cotangent)


def segment_sums_case(draw: Draw) -> Iterator[Pair]:
    index_TR, n_rows = _picks(draw)
    coefficients = [draw.normal(*index_TR.shape) for _ in range(2)]
    rows = [draw.normal(len(index_TR), draw.one_of((*WIDTHS, 1030))) for _ in range(2)]
    found = segment_sums_triton(index_TR, n_rows, coefficients, rows)
    wide = ([tensor.double() for tensor in side] for side in (coefficients, rows))
    for mine, theirs in zip(found, segment_sums_reference(index_TR, n_rows, *wide), strict=True):
        yield Pair("sum", mine, theirs)


def gather_dot_case(draw: Draw) -> Iterator[Pair]:
    (index_TR, n_rows), width = _picks(draw), draw.one_of(WIDTHS)
    leaves = [draw.normal(len(index_TR), width), draw.normal(n_rows, width)]
    yield from _on_triton(
        lambda x, table: gather_dot(x, table, index_TR),
        lambda x, table: gather_dot_reference(x, table, index_TR),
        leaves,
        draw.normal(*index_TR.shape),
    )


def gather_sum_case(draw: Draw) -> Iterator[Pair]:
    (index_TR, n_rows), width = _picks(draw), draw.one_of(WIDTHS)
    leaves = [draw.normal(*index_TR.shape), draw.normal(n_rows, width)]
    yield from _on_triton(
        lambda coefficient, table: gather_sum(coefficient, table, index_TR),
        lambda coefficient, table: gather_sum_reference(coefficient, table, index_TR),
        leaves,
        draw.normal(len(index_TR), width),
    )


def peer_case(draw: Draw) -> Iterator[Pair]:
    (index_TR, n_rows), width, activation = _picks(draw), draw.one_of(WIDTHS), draw.one_of(tuple(ACTIVATIONS))
    tables = [draw.normal(n_rows, width) / width**0.5 for _ in range(2)]
    leaves = [draw.normal(len(index_TR), width), draw.weights(index_TR.numel()).view(index_TR.shape), *tables]
    yield from _on_triton(
        lambda x, weight, down, up: peer(x, index_TR, weight, down, up, activation),
        lambda x, weight, down, up: peer_reference(x, index_TR, weight, down, up, activation),
        leaves,
        draw.normal(len(index_TR), width),
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


def _picks(draw: Draw) -> tuple[Tensor, int]:
    """Rows of a table that tokens pick, [T, R]: at times a run long enough for a piece; and how many rows the table has."""
    n_tokens, n_routes, n_rows = draw.number(0, 16), draw.one_of((1, 3, 16, 40)), draw.one_of((1, 2, 7, 30))
    return draw.experts(n_tokens * n_routes, n_rows).view(n_tokens, n_routes), n_rows


def _on_triton(kernel: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: list[Tensor], cotangent: Tensor) -> Iterator[Pair]:
    """`_differentiated` of an operation that picks its form by device, with the Triton one picked anywhere."""
    with ExitStack() as patches:
        for room in ("peer", "segment_sums", "table_rows"):
            patches.enter_context(mock.patch(f"kernels.{room}.runs_triton", return_value=True))
        pairs = list(_differentiated(kernel, reference, leaves, cotangent))
    yield from pairs


def _some_order(draw: Draw, plan: Plan) -> Tensor | None:
    """An order of tiles, or none."""
    windows = draw.number(0, 3)
    return tile_order_reference(plan, windows) if windows else None


def _differentiated(
    kernel: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: list[Tensor], cotangent: Tensor
) -> Iterator[Pair]:
    """The result and every gradient."""
    mine, theirs = [leaf.requires_grad_() for leaf in leaves], [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = kernel(*mine), reference(*theirs)
    found.backward(cotangent)
    expected.backward(cotangent.double())
    yield Pair("result", found.detach(), expected.detach())
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert a.grad is not None
        yield Pair(f"gradient {number}", a.grad, torch.zeros_like(b) if b.grad is None else b.grad)
