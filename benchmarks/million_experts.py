"""A small model whose middle layer is PEER with 1024^2 experts trains on this machine: losses, and memory beside what gathering would take.

    ./launch.sh bench million_experts [--side 1024] [--width 32] [--tokens 4096] [--steps 5] [--precision fp32]

Every step sees the same tokens, so its loss must fall. On a GPU where there is one, else one thread of a CPU: 1.7 GiB and a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from benchmarks.tokens import zipf_tokens
from distributed.engine_plain import PlainEngine
from distributed.metrics import device_bytes, host_bytes
from distributed.train_config import TrainConfig
from model.attention_config import DenseAttentionConfig
from model.config import ModelConfig
from model.dense_config import DenseFeedForwardConfig
from model.depth_config import DepthConfig
from model.moeut import MoEUT
from model.product_key_config import PeerConfig

VOCABULARY, LENGTH = 500, 64
MEBI = 1 << 20


def model_config(side: int, width: int) -> ModelConfig:
    """Three layers of which the middle one has side^2 experts, 8 heads of 16 each (arXiv 2407.04153: one layer, in the middle)."""
    return ModelConfig(
        vocab_size=VOCABULARY,
        d_model=width,
        depth=DepthConfig(group=3, repeats=1),
        attention=DenseAttentionConfig(n_heads=2, d_head=width // 2),
        feed_forward=DenseFeedForwardConfig(d_ff=4 * width),
        feed_forward_at={1: PeerConfig(n_keys=side, heads=8, top_k=16, d_key=32)},
        norm="pre",
    )


def losses(config: ModelConfig, n_tokens: int, steps: int, precision: str, device: torch.device) -> list[float]:
    """Nats a token of every step, AdamW, in two micro-batches."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = MoEUT(config).init_parameters(0).to(device, dtype)
    batch = n_tokens // LENGTH
    train = TrainConfig(steps=steps, global_batch=batch, micro_batch=batch // 2, weight_decay=0.0, clip=1.0)
    engine = PlainEngine(model, train)
    tokens_BT = zipf_tokens(batch, LENGTH + 1, VOCABULARY, seed=0).to(device)
    found = []
    for _ in range(steps):
        total = 0.0
        for number, part_BT in enumerate(tokens_BT.chunk(2)):
            loss = engine.module(part_BT[:, :-1], targets_BT=part_BT[:, 1:]).cross_entropy / (batch * LENGTH)
            engine.backward(loss, last=number == 1)
            total += float(loss.detach())
        engine.step(1e-2)
        found.append(total)
    return found


def at_least(least: int, why: str) -> Callable[[str], int]:
    """How argparse reads a whole number that must be `least` or more."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small: {why}, so give {least} or more")
        return value

    read.__name__ = "whole number"  # argparse names it where the text is none
    return read


def _peak(device: torch.device) -> int:
    return device_bytes(device) if device.type == "cuda" else host_bytes()


def main(argv: list[str]) -> int:
    """Train and print; 1 where the loss did not fall in every step."""
    parser = argparse.ArgumentParser(prog="bench million_experts", description=(__doc__ or "").split("\n", 1)[0])
    side, tokens = at_least(4, "a head picks 16 of its square"), at_least(2 * LENGTH, f"two micro-batches of windows of {LENGTH}")
    parser.add_argument("--side", type=side, default=1024, help="the square root of the number of experts (default: 1024)")
    parser.add_argument("--width", type=at_least(2, "attention has two heads"), default=32, help="of the model (default: 32)")
    parser.add_argument("--tokens", type=tokens, default=4096, help="of a step (default: 4096)")
    parser.add_argument("--steps", type=at_least(2, "losses are compared"), default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the parameters")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    config, device = model_config(args.side, args.width), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before, started = _peak(device), time.perf_counter()
    found = losses(config, args.tokens, args.steps, args.precision, device)
    table, state = args.side**2 * args.width, 16 if args.precision == "fp32" else 18
    peer = config.feed_forward_at[1]
    assert isinstance(peer, PeerConfig)
    print(f"{args.side}^2 experts of width {args.width}, {peer.reads} a token, {args.tokens} tokens a step, {args.precision} parameters")
    print(
        f"losses {' '.join(f'{loss:.4f}' for loss in found)}; {(time.perf_counter() - started) / args.steps:.1f} s a step, start included"
    )
    print(f"two tables, their gradients, masters and moments {2 * table * state / MEBI:.0f} MiB; a gradient {4 * table / MEBI:.0f} MiB")
    print(f"peak of the process over its start {(_peak(device) - before) / MEBI:.0f} MiB")
    per_token = {"scores of all sub-keys (made)": 2 * peer.heads * peer.n_keys, "rows of one table (never made)": peer.reads * args.width}
    print("; ".join(f"{name} {args.tokens // 2 * entries * 4 / MEBI:.0f} MiB" for name, entries in per_token.items()), "a micro-batch")
    return int(any(later >= earlier for earlier, later in pairwise(found)))
