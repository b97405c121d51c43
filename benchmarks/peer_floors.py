"""What PEER must do at least, launch by launch."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.floors import BF16, FP32, INT64, Work


class Memory(NamedTuple):
    """A layer of one-neuron experts: model width, experts, experts picked a token."""

    width: int
    n_experts: int
    routes: int


PEER = Memory(1024, 1024**2, 8 * 16)
"""1024^2 experts, 8 heads of 16 (arXiv 2407.04153, Table 1); the paper gives no width."""


def peer(shape: Memory, tokens: int) -> dict[str, Work]:
    """Every launch of PEER, forward and backward, in bf16 with gradients of the tables in float32."""
    routes = tokens * shape.routes
    rows, x, dot = routes * shape.width * BF16, tokens * shape.width * BF16, routes * FP32
    index, table, products = routes * INT64, shape.n_experts * shape.width * FP32, 2 * routes * shape.width
    # Sorted: keys and places in and out once, where a radix sort reads and writes them several times.
    return {
        "forward": Work(2 * products, 2 * rows + 2 * x + index + 2 * dot),
        "d dot": Work(products, rows + x + index + dot),
        "d x": Work(products, rows + x + index + dot),
        "sort": Work(0, 4 * index),
        "d down": Work(products, rows + index + dot + table),
        "d up": Work(products, rows + index + dot + table),
    }
