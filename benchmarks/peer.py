"""PEER beside the same layer with all experts gathered, forward alone and with its backward, on this device.

    ./launch.sh bench peer [--tokens 1024] [--width 64] [--side 1024] [--picks 128] [--rounds 5]

In every round each form runs once in changed order; times are medians over rounds, the ratio the median of the rounds' ratios. On an
accelerator in bfloat16, with the bytes that `bench roofline` counts over the time; on a CPU in float32, one thread, processor time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peer_floors import Memory
from benchmarks.peer_floors import peer as floors
from benchmarks.timing import Form, measure, ratio
from kernels.peer import peer, peer_reference


def forms(shape: Memory, tokens: int, dtype: torch.dtype, device: str) -> dict[str, dict[str, Form]]:
    """ "forward" and "both ways" in each form, on the same picks."""
    index_TR = torch.randint(shape.n_experts, (tokens, shape.routes), device=device)
    weight_TR = torch.rand(tokens, shape.routes, device=device).requires_grad_()
    wide = ((tokens, shape.width), (shape.n_experts, shape.width), (shape.n_experts, shape.width), (tokens, shape.width))
    x_TD, down_ND, up_ND, dy_TD = ((torch.randn(size, device=device, dtype=dtype) / shape.width**0.5).requires_grad_() for size in wide)
    leaves = [x_TD, weight_TR, down_ND, up_ND]

    def gathered(x_TD: Tensor, index_TR: Tensor, weight_TR: Tensor, down_ND: Tensor, up_ND: Tensor) -> Tensor:
        return peer_reference(x_TD, index_TR, weight_TR.to(dtype), down_ND, up_ND)

    def both(operation: Callable[..., Tensor]) -> Form:
        return lambda: torch.autograd.grad(operation(x_TD, index_TR, *leaves[1:]), leaves, dy_TD.detach())

    def forward(operation: Callable[..., Tensor]) -> Form:
        return torch.no_grad()(lambda: operation(x_TD, index_TR, *leaves[1:]))

    operations = {"ours": peer, "gathered": gathered}
    ways = {"forward": forward, "both ways": both}
    return {title: {name: way(operation) for name, operation in operations.items()} for title, way in ways.items()}


def main(argv: list[str]) -> int:
    """Measure and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="bench peer", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=16384 if device == "cuda" else 1024)
    parser.add_argument("--width", type=int, default=1024 if device == "cuda" else 64, help="of the model")
    parser.add_argument("--side", type=int, default=1024, help="the square root of the number of experts (default: 1024)")
    parser.add_argument("--picks", type=int, default=128, help="experts a token (default: 128)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    shape, dtype = Memory(args.width, args.side**2, args.picks), torch.bfloat16 if device == "cuda" else torch.float32
    work = floors(shape, args.tokens)
    least = {"forward": work["forward"].bytes, "both ways": sum(part.bytes for part in work.values())}
    print(f"{args.tokens} tokens, width {args.width}, {shape.n_experts} experts, {args.picks} a token, {dtype}, {device}")
    for title, of_title in forms(shape, args.tokens, dtype, device).items():
        found = measure(of_title, args.rounds, device)
        ours, gathered = (statistics.median(found[name]) for name in ("ours", "gathered"))
        over = ratio(found["ours"], found["gathered"])
        speed = f", {least[title] / ours / 1e12:.2f} TB/s" if device == "cuda" else ""
        print(
            f"{title:<10} ours {1e3 * ours:9.2f} ms{speed}   gathered {1e3 * gathered:9.2f} ms   ratio {over:.2f}",
            flush=True,
        )
    return 0
