"""The expert layer and SwitchHead's maps beside dense layers of equal work and torch's grouped_mm, forward and backward, on this device.

    ./launch.sh bench kernels [--sizes 44M ...] [--tokens 2048] [--dtype bf16] [--rounds 9]

In every round each form runs once in changed order; times are medians over rounds, ratios medians of the rounds' ratios. On a CPU one
thread runs and times are of the processor. `spec` is d_model 416, 156 experts of width 128, 12 a token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.expert_mlp import expert_mlp
from kernels.routed_linear import routed_linear
from model.config import SigmaMoEConfig, SwitchHeadConfig
from model.paper import PAPER

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CPU_BAR = 3.0
WARM_UP_ROUNDS = 2


class Shape(NamedTuple):
    """Of an expert layer: model width, expert width, experts, experts a token."""

    width: int
    narrow: int
    n_experts: int
    top_k: int


SPEC = Shape(416, 128, 156, 12)
Form = Callable[[], object]


def ffn_forms(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """One forward and backward of the FFN in each form, on the same random routes."""
    draw = _Leaves(dtype, device)
    x_SD, dy_SD = draw(tokens, shape.width), draw(tokens, shape.width).detach()
    up, down = draw(shape.n_experts, shape.width, shape.narrow), draw(shape.n_experts, shape.narrow, shape.width)
    expert_TK = torch.rand(tokens, shape.n_experts, device=device).topk(shape.top_k).indices
    weight_Q = torch.rand(tokens * shape.top_k, device=device).requires_grad_()
    row_Q = torch.arange(tokens, device=device).repeat_interleave(shape.top_k)
    wide_in, wide_out = draw(shape.top_k * shape.narrow, shape.width), draw(shape.width, shape.top_k * shape.narrow)

    def ours() -> Tensor:
        return expert_mlp(x_SD, row_Q, expert_TK.flatten(), weight_Q, up, down)

    def dense() -> Tensor:
        return F.linear(torch.relu(F.linear(x_SD, wide_in)), wide_out)

    def grouped() -> Tensor:
        sorted_Q, order_Q = expert_TK.flatten().sort(stable=True)
        ends_E = torch.searchsorted(sorted_Q, torch.arange(shape.n_experts, device=device), right=True).int()
        hidden_QF = torch.relu(F.grouped_mm(x_SD[row_Q[order_Q]], up, offs=ends_E))
        answer_QD = F.grouped_mm(hidden_QF, down, offs=ends_E) * weight_Q[order_Q, None].to(dtype)
        return torch.zeros_like(x_SD).index_add(0, row_Q[order_Q], answer_QD)

    leaves = [x_SD, weight_Q, up, down]
    forms = {"ours": _both_ways(ours, leaves, dy_SD), "dense": _both_ways(dense, [x_SD, wide_in, wide_out], dy_SD)}
    # torch's takes rows of whole 16 bytes only: not the 412 of the 44M model in bf16.
    aligned = all(width * dtype.itemsize % 16 == 0 for width in (shape.width, shape.narrow))
    return forms | ({"grouped_mm": _both_ways(grouped, leaves, dy_SD)} if aligned else {})


def linear_forms(config: SwitchHeadConfig, width: int, tokens: int, dtype: torch.dtype, device: str, output: bool) -> dict[str, Form]:
    """SwitchHead's value or output map beside a dense map of equal work."""
    draw = _Leaves(dtype, device)
    heads, taken = config.n_heads, config.n_heads * config.top_k
    d_in, d_out = (config.d_head, width) if output else (width, config.d_head)
    rows_in, rows_out = (tokens * heads, tokens) if output else (tokens, tokens * heads)
    x_RD, w_EDF, dy_OF = draw(rows_in, d_in), draw(heads * config.n_experts, d_in, d_out), draw(rows_out, d_out).detach()
    expert_THK = torch.rand(tokens, heads, config.n_experts, device=device).topk(config.top_k).indices
    flat_Q = (expert_THK + torch.arange(heads, device=device)[:, None] * config.n_experts).flatten()
    token_Q = torch.arange(tokens, device=device).repeat_interleave(taken)
    by_head_Q = torch.arange(tokens * heads, device=device).repeat_interleave(config.top_k)
    weight_Q = torch.rand(tokens * taken, device=device).requires_grad_()
    in_Q, out_Q = (by_head_Q, token_Q) if output else (token_Q, by_head_Q)
    wide_x = draw(tokens, taken * config.d_head if output else width)
    wide_w = draw(width, taken * config.d_head) if output else draw(taken * config.d_head, width)
    wide_dy = draw(tokens, wide_w.shape[0]).detach()
    ours = _both_ways(lambda: routed_linear(x_RD, w_EDF, in_Q, out_Q, flat_Q, weight_Q, rows_out), [x_RD, w_EDF, weight_Q], dy_OF)
    return {"ours": ours, "dense": _both_ways(lambda: F.linear(wide_x, wide_w), [wide_x, wide_w], wide_dy)}


class _Leaves:
    """Draws tensors that want a gradient."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self._dtype, self._device = dtype, device

    def __call__(self, *shape: int) -> Tensor:
        return (torch.randn(*shape, device=self._device) / shape[-1] ** 0.5).to(self._dtype).requires_grad_()


def _both_ways(forward: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor) -> Form:
    return lambda: torch.autograd.grad(forward(), leaves, cotangent)


def measure(forms: dict[str, Form], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every form in every round."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    names = list(forms)
    for number in range(-WARM_UP_ROUNDS, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = _device_seconds(forms[name]) if device == "cuda" else _processor_seconds(forms[name])
            if number >= 0:
                found[name].append(seconds)
    return found


def _processor_seconds(form: Form) -> float:
    started = time.process_time()
    form()
    return time.process_time() - started


def _device_seconds(form: Form) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    form()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def report(name: str, found: dict[str, list[float]]) -> float:
    """Print a line; our time over the dense one's."""
    ratios = {form: statistics.median(a / b for a, b in zip(times, found["dense"], strict=True)) for form, times in found.items()}
    parts = [f"{form} {1e3 * statistics.median(times):9.2f} ms ({ratios[form]:.2f})" for form, times in found.items()]
    print(f"{name:<14}" + "   ".join(parts), flush=True)
    return ratios["ours"]


def main(argv: list[str]) -> int:
    """Measure and print; 1 where the CPU's bar is missed."""
    parser = argparse.ArgumentParser(prog="bench kernels", description=(__doc__ or "").split("\n", 1)[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--sizes", nargs="+", choices=["spec", *PAPER], default=["spec", *(PAPER if device == "cuda" else ["44M"])])
    parser.add_argument("--tokens", type=int, default=65536 if device == "cuda" else 2048, help="tokens of a visit")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    dtype, missed = DTYPES[args.dtype], False
    print(f"{args.tokens} tokens, {args.dtype}, {device}; forward and backward, median of {args.rounds} rounds (over the dense layer)")
    for size in args.sizes:
        shape = SPEC if size == "spec" else _shape(size)
        ratio = report(f"{size} ffn", measure(ffn_forms(shape, args.tokens, dtype, device), args.rounds, device))
        missed |= size == "spec" and device == "cpu" and ratio > CPU_BAR
        if size != "spec":
            attention = PAPER[size].attention
            assert isinstance(attention, SwitchHeadConfig)
            for name, output in (("value", False), ("output", True)):
                forms = linear_forms(attention, shape.width, args.tokens, dtype, device, output)
                report(f"{size} {name}", measure(forms, args.rounds, device))
    if device == "cpu" and "spec" in args.sizes:
        print(f"spec ffn over dense: bar {CPU_BAR:.0f}: {'ABOVE' if missed else 'within'}")
    return int(missed)


def _shape(size: str) -> Shape:
    config = PAPER[size]
    assert isinstance(config.feed_forward, SigmaMoEConfig)
    return Shape(config.d_model, config.feed_forward.d_expert, config.feed_forward.n_experts, config.feed_forward.top_k)
