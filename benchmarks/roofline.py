"""The least time each kernel can take: its FLOPs and the least bytes it must move, over what a device can do.

    ./launch.sh bench roofline [--tokens 65536] [--sizes 244M ...]

Bytes count every tensor once, gathered rows as often as they are gathered (a row's repeated reads may come from the second-level
cache, and the true least is then less; `bench forms` tells the forms of the FFN apart by that and by the cache's own bandwidth).
Peaks are the makers' dense bf16 figures. No device is asked.
"""

from __future__ import annotations

import argparse

from benchmarks.floors import BF16, DEVICES, FP32, INT64, Work
from benchmarks.peer_floors import PEER, peer
from benchmarks.stream_floors import readers, stream
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.moe_config import SigmaMoEConfig
from model.paper import PAPER


def kernels(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """Every launch of one visit's FFN, SwitchHead maps and routers (each kind of the latter once), forward and backward, in bf16."""
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
    work |= {f"ffn {part}": value for part, value in _router(tokens, n_experts, feed_forward.top_k).items()}
    return work | {f"attention {part}": value for part, value in _router(by_head, attention.n_experts, attention.top_k).items()}


def whole(config: ModelConfig, tokens: int) -> Work:
    """The FFN stack, forward and backward, as if nothing between input and output touched memory but the hidden layer."""
    feed_forward = config.feed_forward
    assert isinstance(feed_forward, SigmaMoEConfig)
    parts = _mlp(tokens, tokens * feed_forward.top_k, feed_forward.n_experts, config.d_model, feed_forward.d_expert)
    rows, hidden = tokens * config.d_model * BF16, tokens * feed_forward.top_k * feed_forward.d_expert * BF16
    weights = 2 * feed_forward.n_experts * config.d_model * feed_forward.d_expert * BF16
    # Forward: x in, y out, hidden kept. Backward: x, dy and hidden in, dx out. Weights read twice, their gradients written.
    return Work(sum(part.flops for part in parts.values()), 5 * rows + 2 * hidden + 3 * weights)


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


def _router(rows: int, n_experts: int, top_k: int) -> dict[str, Work]:
    logits, chosen = rows * n_experts * FP32, rows * top_k * (INT64 + FP32)
    return {"router": Work(0, logits + chosen), "d router": Work(0, 2 * logits + chosen)}


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
