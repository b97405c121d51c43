"""PEER and its parts beside their references: see `kernel_cases`.

Shape suffixes: T tokens, R rows picked a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from unittest import mock

from torch import Tensor

from benchmarks.kernel_draw import WIDTHS, Draw, Pair, differentiated
from kernels.peer import ACTIVATIONS, peer, peer_reference
from kernels.segment_sums import segment_sums_reference
from kernels.segment_sums_triton import segment_sums_triton
from kernels.table_rows import gather_dot, gather_dot_reference, gather_sum, gather_sum_reference


def segment_sums_case(draw: Draw) -> Iterator[Pair]:
    index_TR, n_rows = _picks(draw)
    coefficients = [_coefficients(draw, index_TR) for _ in range(2)]
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
        _coefficients(draw, index_TR),
    )


def gather_sum_case(draw: Draw) -> Iterator[Pair]:
    (index_TR, n_rows), width = _picks(draw), draw.one_of(WIDTHS)
    leaves = [_coefficients(draw, index_TR), draw.normal(n_rows, width)]
    yield from _on_triton(
        lambda coefficient, table: gather_sum(coefficient, table, index_TR),
        lambda coefficient, table: gather_sum_reference(coefficient, table, index_TR),
        leaves,
        draw.normal(len(index_TR), width),
    )


def peer_case(draw: Draw) -> Iterator[Pair]:
    (index_TR, n_rows), width, activation = _picks(draw), draw.one_of(WIDTHS), draw.one_of(tuple(ACTIVATIONS))
    tables = [draw.normal(n_rows, width) / width**0.5 for _ in range(2)]
    leaves = [draw.normal(len(index_TR), width), _coefficients(draw, index_TR), *tables]
    yield from _on_triton(
        lambda x, weight, down, up: peer(x, index_TR, weight, down, up, activation),
        lambda x, weight, down, up: peer_reference(x, index_TR, weight, down, up, activation),
        leaves,
        draw.normal(len(index_TR), width),
    )


def _picks(draw: Draw) -> tuple[Tensor, int]:
    """Rows of a table that tokens pick, [T, R]: at times a run long enough for a piece; and how many rows the table has."""
    n_tokens, n_routes, n_rows = draw.number(0, 16), draw.one_of((1, 3, 16, 40)), draw.one_of((1, 2, 7, 30))
    return draw.experts(n_tokens * n_routes, n_rows).view(n_tokens, n_routes), n_rows


def _coefficients(draw: Draw, index_TR: Tensor) -> Tensor:
    """Of one sign: a token may pick one row many times, and where such picks cancel, float32 has no relative accuracy to compare."""
    return draw.weights(index_TR.numel()).view(index_TR.shape)


def _on_triton(kernel: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: list[Tensor], cotangent: Tensor) -> Iterator[Pair]:
    """`differentiated` of an operation that picks its form by device, with the Triton one picked anywhere."""
    with ExitStack() as patches:
        for room in ("peer", "segment_sums", "table_rows"):
            patches.enter_context(mock.patch(f"kernels.{room}.runs_triton", return_value=True))
        pairs = list(differentiated(kernel, reference, leaves, cotangent))
    yield from pairs
