"""The least time each kernel can take: its FLOPs and the least bytes it must move, over what a device can do.

    ./launch.sh bench roofline [--tokens 65536] [--sizes 244M ...]

Bytes count every tensor once, gathered rows as often as they are gathered (a row's repeated reads may come from the second-level
cache, and the true least is then less; `bench forms` tells the forms of the FFN apart by that and by the cache's own bandwidth).
Peaks are the makers' dense bf16 figures. No device is asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NamedTuple

from model.config import ModelConfig, SigmaMoEConfig, SwitchHeadConfig
from model.paper import PAPER

BF16, FP32, INT64 = 2, 4, 8


class Device(NamedTuple):
    """bf16 FLOP/s on tensor cores without sparsity, float32 FLOP/s without them, bytes/s of memory and of the second-level cache."""

    flops: float
    float32_flops: float
    bandwidth: float
    cache: float


# 5,120 bytes a clock are read from A100's second-level cache (its white paper). Hopper's is not published: taken as wide, at its clock.
CACHE_BYTES_A_CLOCK = 5120
DEVICES = {
    "A100-80": Device(312e12, 19.5e12, 2.039e12, CACHE_BYTES_A_CLOCK * 1.41e9),  # NVIDIA A100 data sheet, SXM
    "H100": Device(989.4e12, 67e12, 3.35e12, CACHE_BYTES_A_CLOCK * 1.755e9),  # NVIDIA H100 data sheet, SXM, half of the sparse figure
    "H200": Device(989.4e12, 67e12, 4.8e12, CACHE_BYTES_A_CLOCK * 1.755e9),
}


class Work(NamedTuple):
    """What a kernel does at least."""

    flops: float
    bytes: float
    cached: float = 0.0
    """Bytes between programs and the second-level cache, where they are counted."""
    float32_flops: float = 0.0

    def seconds(self, device: Device) -> float:
        """The floor: arithmetic, memory and cache perfectly overlapped."""
        arithmetic = self.flops / device.flops + self.float32_flops / device.float32_flops
        return max(arithmetic, self.bytes / device.bandwidth, self.cached / device.cache)


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


def kernels(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """Every launch of one visit's FFN and SwitchHead maps, forward and backward, in bf16."""
    feed_forward, attention = config.feed_forward, config.attention
    assert isinstance(feed_forward, SigmaMoEConfig) and isinstance(attention, SwitchHeadConfig)
    width, narrow, n_experts = config.d_model, feed_forward.d_expert, feed_forward.n_experts
    routes = tokens * feed_forward.top_k
    work = {f"ffn {name}": value for name, value in _mlp(tokens, routes, n_experts, width, narrow).items()}
    routes, matrices = tokens * attention.n_heads * attention.top_k, attention.n_heads * attention.n_experts
    by_head = tokens * attention.n_heads
    for name, rows_in, rows_out, d_in, d_out in (
        ("value", tokens, by_head, width, attention.d_head),
        ("output", by_head, tokens, attention.d_head, width),
    ):
        work |= {f"{name} {part}": value for part, value in _linear(routes, matrices, rows_in, rows_out, d_in, d_out).items()}
    return work


def whole(config: ModelConfig, tokens: int) -> Work:
    """The FFN stack, forward and backward, as if nothing between input and output touched memory but the hidden layer."""
    feed_forward = config.feed_forward
    assert isinstance(feed_forward, SigmaMoEConfig)
    parts = _mlp(tokens, tokens * feed_forward.top_k, feed_forward.n_experts, config.d_model, feed_forward.d_expert)
    rows, hidden = tokens * config.d_model * BF16, tokens * feed_forward.top_k * feed_forward.d_expert * BF16
    weights = 2 * feed_forward.n_experts * config.d_model * feed_forward.d_expert * BF16
    # Forward: x in, y out, hidden kept. Backward: x, dy and hidden in, dx out. Weights read twice, their gradients written.
    return Work(sum(part.flops for part in parts.values()), 5 * rows + 2 * hidden + 3 * weights)


def stream(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """A visit's work on the float32 stream, both halves and both ways: additions, both casts, layer norms.

    Each list has a visit's passes in bytes an entry. By operators, a half: addition 4+2+4, cast 4+2, norm 4+4, cast 4+2; backward:
    casts of dn and ddata 2+4 each, norm 4+4+4, its weights 4+4, two sums of gradients 4+4+4, cast of dy 4+2.
    """
    entries = tokens * config.d_model
    add, cast, dy = 10, 6, 6
    operators = 2 * ((add + cast + 8 + cast) + (2 * cast + 12 + 8 + 2 * 12 + dy))
    read, read_added = 4 + 2 + 2, 4 + 2 + 4 + 2 + 2
    back, back_added = 4 + 2 + 2 + 4 + 4, 4 + 2 + 2 + 4 + 4 + 2
    return {
        "by operators": Work(0, operators * entries),
        "in one pass": Work(0, (read + read_added + add + back + back_added + dy) * entries),
        "over visits": Work(0, 2 * (read_added + back_added) * entries),
    }


def readers(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """Every product of a visit that reads the normalised stream, forward and backward, and the sums of the gradients it gets from them.

    `logits fp32`, `logits`: the three routers in float32 and on tensor cores. `... joined`: queries with keys, and the attention's
    routers, as one product each. In a visit are `logits`, `query, key` and `dn sums`.
    """
    feed_forward, attention = config.feed_forward, config.attention
    assert isinstance(feed_forward, SigmaMoEConfig) and isinstance(attention, SwitchHeadConfig)
    width, heads = config.d_model, attention.n_heads * attention.d_head
    routers, experts = attention.n_heads * attention.n_experts, feed_forward.n_experts
    one_sum = 3 * tokens * width * BF16
    return {
        "logits fp32": _sum(_float32_logits(tokens, width, out) for out in (routers, routers, experts)),
        "logits": _sum(_reader(tokens, width, out, FP32) for out in (routers, routers, experts)),
        "logits joined": _sum(_reader(tokens, width, out, FP32) for out in (2 * routers, experts)),
        "query, key": _sum(_reader(tokens, width, heads, BF16) for _ in range(2)),
        "q, k joined": _reader(tokens, width, 2 * heads, BF16),
        "dn sums": Work(0, 3 * one_sum),
        "dn sums joined": Work(0, one_sum),
    }


def _reader(tokens: int, width: int, out: int, out_bytes: int) -> Work:
    """x in, result out; gradient in (rounded first where it is float32), dx out; both in for the weights."""
    x, y, w = tokens * width * BF16, tokens * out * BF16, width * out * BF16
    rounding = tokens * out * FP32 + y if out_bytes == FP32 else 0
    return Work(6 * tokens * width * out, (x + tokens * out * out_bytes + w) + rounding + (y + w + x) + (x + y + w))


def _float32_logits(tokens: int, width: int, out: int) -> Work:
    """The same with x widened and kept, and dx narrowed."""
    x, y, w = tokens * width * FP32, tokens * out * FP32, width * out * FP32
    casts = 2 * tokens * width * (BF16 + FP32)
    return Work(0, 3 * (x + y + w) + casts, float32_flops=6 * tokens * width * out)


def _sum(works: Iterable[Work]) -> Work:
    return Work(*(sum(column) for column in zip(*works, strict=True)))


def _mlp(tokens: int, routes: int, n_experts: int, width: int, narrow: int) -> dict[str, Work]:
    matmul, weights = 2 * routes * width * narrow, n_experts * width * narrow * BF16
    wide, hidden, rows, index = routes * width * BF16, routes * narrow * BF16, tokens * width * BF16, routes * INT64
    return {
        "sort": Work(0, 3 * index),
        "up": Work(matmul, wide + weights + hidden + index),
        "down": Work(matmul, hidden + weights + wide + index),
        "sum": Work(routes * width, wide + rows),
        "d hidden": Work(matmul, wide + weights + 2 * hidden + index),
        "d up": Work(matmul, wide + hidden + weights + index),
        "d down": Work(matmul, wide + hidden + weights + index),
        "d x": Work(matmul, hidden + weights + wide + index),
        "d sum": Work(routes * width, wide + rows),
    }


def _linear(routes: int, n_experts: int, rows_in: int, rows_out: int, d_in: int, d_out: int) -> dict[str, Work]:
    matmul, weights = 2 * routes * d_in * d_out, n_experts * d_in * d_out * BF16
    taken, given, index = routes * d_in * BF16, routes * d_out * BF16, routes * INT64
    return {
        "sort": Work(0, 3 * index),
        "product": Work(matmul, taken + weights + given + index),
        "sum": Work(routes * d_out, given + rows_out * d_out * BF16),
        "d x": Work(matmul, given + weights + 2 * taken + index),
        "d w": Work(matmul, taken + given + weights + index),
        "d sum": Work(routes * d_in, taken + rows_in * d_in * BF16),
    }


def everything(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """All rows of a size."""
    streams = {f"stream {name}": work for name, work in stream(config, tokens).items()}
    return kernels(config, tokens) | {"ffn as one": whole(config, tokens)} | streams | readers(config, tokens)


def main(argv: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench roofline", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of a visit (default: 65536)")
    parser.add_argument("--sizes", nargs="+", choices=PAPER, default=list(PAPER), help="default: all")
    args = parser.parse_args(argv)
    print(f"{'size':<7}{'kernel':<20}{'GFLOP':>10}{'MB':>10}" + "".join(f"{name + ', us':>14}" for name in DEVICES))
    sizes = {size: everything(PAPER[size], args.tokens) for size in args.sizes}
    for size, rows in (sizes | {"PEER": peer(PEER, args.tokens)}).items():
        for name, work in rows.items():
            floors = "".join(f"{1e6 * work.seconds(device):>14.0f}" for device in DEVICES.values())
            print(f"{size:<7}{name:<20}{(work.flops + work.float32_flops) / 1e9:>10.0f}{work.bytes / 1e6:>10.0f}{floors}")
    return 0
