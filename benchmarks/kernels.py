"""The expert layer and SwitchHead's maps beside dense layers of equal work, torch's grouped_mm and other projects' layers, on this device.

    ./launch.sh bench kernels [--sizes 44M ...] [--tokens 2048] [--dtype bf16] [--rounds 9] [--rivals .rivals]
    ./launch.sh bench kernels --operations [--sizes 244M]      each launch alone, beside its floor (needs an accelerator)
    ./launch.sh bench kernels --tune [--sizes 244M]            other tiles, warps and stages for the matrix products

Forward and backward. In every round each form runs once in changed order; times are medians over rounds, ratios medians of the
rounds' ratios. On a CPU one thread runs and times are of the processor. `d416` is d_model 416, 156 experts of width 128, 12 a token;
`d768` to `d4096` are the shapes of cvmm_codex's own benchmark, with their tokens. The dense forms of `loss`, and on an accelerator of
`stream` and `logits`, are torch's operators: all logits kept, casts and layer norms apart, products of float32. What other projects'
layers need: benchmarks/rivals.py. `switchhead` is beside the dense peer's attention, which has other work.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.attention_forms import attention_forms
from benchmarks.comparison import DENSE, HEADER, OURS, Comparison, compare, show
from benchmarks.floors import DEVICES, NAMES, Device
from benchmarks.kernel_forms import draw_layer, layer_forms, loss_forms
from benchmarks.kernel_shapes import SIZES, Size
from benchmarks.map_forms import map_forms
from benchmarks.results import figure, machine
from benchmarks.rivals import rival_forms
from benchmarks.roofline import kernels, whole
from benchmarks.stream_floors import readers, stream
from benchmarks.stream_forms import logits_forms, stream_forms
from benchmarks.timing import Form, measure
from cluster.markdown import head, table
from model.paper import DENSE_PEERS, PAPER

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
RIVALS = Path(__file__).resolve().parents[1] / ".rivals"
CPU_BAR, CPU_SIZE, CPU_TOKENS = 3.0, "d416", 2048
HOPPER_SIZE, HOPPER_TOKENS, HOPPER = "244M", 65536, 9


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a bar is missed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args = _arguments(device).parse_args(argv)
    torch.set_num_threads(1)
    alone = args.operations or args.tune
    print(f"{machine()}\n{args.dtype}; {'each alone' if alone else 'forward and backward'}; median of {args.rounds} rounds", flush=True)
    if not alone:
        return _side_by_side(args, device)
    if device == "cpu":
        print("single launches are Triton kernels: they need an accelerator")
        return 2
    for size in (size for size in args.sizes if size in PAPER):
        tokens = args.tokens or SIZES[size].tokens
        if args.tune:
            from benchmarks.tune import tune

            tune(size, tokens, DTYPES[args.dtype], args.seconds)
        else:
            print_operations(size, tokens, DTYPES[args.dtype], args.rounds, device)
    return 0


def _arguments(device: str) -> argparse.ArgumentParser:
    everything = list(SIZES) if device == "cuda" else [CPU_SIZE, "44M"]
    parser = argparse.ArgumentParser(prog="bench kernels", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=everything)
    parser.add_argument("--tokens", type=int, help=f"tokens of a visit (default: each size's own; on a CPU {CPU_TOKENS})")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument("--rivals", type=Path, default=RIVALS, help="folder of other projects' sources (default: .rivals)")
    parser.add_argument("--no-rivals", action="store_true", help="leave them out: theirs tune themselves, for minutes")
    parser.add_argument("--operations", action="store_true", help="each launch alone, for the paper's sizes")
    parser.add_argument("--tune", action="store_true", help="other tiles for the matrix products, for the paper's sizes")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to tune one launch (default: 60)")
    return parser


def _side_by_side(args: argparse.Namespace, device: str) -> int:
    missed: list[str] = []
    judged: list[str] = []
    print("\n" + head(HEADER), flush=True)
    for name in args.sizes:
        size, dtype = SIZES[name], DTYPES[args.dtype]
        tokens = args.tokens or (size.tokens if device == "cuda" else CPU_TOKENS)
        layer = draw_layer(size.layer, tokens, dtype, device)
        rivals, reasons = ({}, {}) if args.no_rivals else rival_forms(args.rivals, layer)
        compared = compare(layer_forms(layer) | rivals, args.rounds, device, reasons)
        floor = _floor(size, tokens, args.dtype)
        print(show(f"{name} ffn, {tokens} tokens", compared, floor), flush=True)
        if _has_bars(name, tokens, args.dtype):
            judged.append(name)
            missed += _missed(compared, floor)
        del layer, rivals
        for title, shape in size.maps.items():
            mapped = compare(map_forms(shape, tokens, dtype, device), args.rounds, device)
            print(show(f"{name} {title}", mapped, None), flush=True)
        for title, forms, least in _other_forms(name, size, tokens, dtype, device):
            print(show(f"{name} {title}", compare(forms, args.rounds, device), least), flush=True)
    met = f"bars met: {', '.join(judged)} ffn" if judged else "no bar is set for these sizes here"
    print("bars missed: " + "; ".join(missed) if missed else met)
    return int(bool(missed))


def _other_forms(
    name: str, size: Size, tokens: int, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, dict[str, Form], float | None]]:
    """Whole attention and the loss of a paper's model, and on an accelerator (elsewhere ours are torch's) its stream and logits."""
    if size.config is None:
        return
    yield "switchhead", attention_forms(size.config, DENSE_PEERS[name], tokens, dtype, device), None
    yield "loss", loss_forms(size.config.d_model, size.config.vocab_size, tokens, dtype, device), None
    if device == "cuda":
        known = _device() if dtype == torch.bfloat16 else None
        works = stream(size.config, tokens)["in one pass"], readers(size.config, tokens)["logits"]
        floors = [None if known is None else work.seconds(known) for work in works]
        yield "stream", stream_forms(size.config, tokens, dtype, device), floors[0]
        yield "logits", logits_forms(size.config, tokens, dtype, device), floors[1]


def _device() -> Device | None:
    known = NAMES.get(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return None if known is None else DEVICES[known]


def _floor(size: Size, tokens: int, dtype: str) -> float | None:
    """Seconds of the FFN as one, where the device is known; the floors are of bf16."""
    device = _device()
    return None if device is None or size.config is None or dtype != "bf16" else whole(size.config, tokens).seconds(device)


def _has_bars(name: str, tokens: int, dtype: str) -> bool:
    """On a CPU `d416` has one, on Hopper 244M with 65,536 tokens in bf16."""
    if not torch.cuda.is_available():
        return name == CPU_SIZE
    return (name, tokens, dtype) == (HOPPER_SIZE, HOPPER_TOKENS, "bf16") and torch.cuda.get_device_capability()[0] == HOPPER


def _missed(compared: Comparison, floor: float | None) -> list[str]:
    """Bars that do not hold, or could not be judged; rivals that are missing miss nothing."""
    over_dense = compared.over(OURS, DENSE)
    if over_dense is None:
        return ["the dense layer could not run"]
    if not torch.cuda.is_available():
        return [f"over dense {over_dense:.2f}, bar {CPU_BAR:.0f}"] * (over_dense > CPU_BAR)
    missed = [f"over dense {over_dense:.2f}, bar 1.45"] * (over_dense > 1.45)
    for rival, bar in (("cvmm", 2.0), ("cvmm_codex", 1.0), ("ScatterMoE", 1.0)):
        speed_up = compared.over(rival, OURS)
        if speed_up is not None and speed_up <= bar:
            missed.append(f"{speed_up:.2f}x as fast as {rival}, bar {bar:g}")
    if floor is None:
        return [*missed, "the device's floor is not known"]
    reached = floor / statistics.median(compared.times[OURS])
    return missed + [f"{reached:.0%} of the floor's speed, bar 70%"] * (reached < 0.7)


def print_operations(name: str, tokens: int, dtype: torch.dtype, rounds: int, device: str) -> None:
    """A table of every launch of a visit, beside its floor where the device is known."""
    from benchmarks.kernel_operations import operations

    config, known = PAPER[name], _device()
    floors = kernels(config, tokens) if known is not None and dtype == torch.bfloat16 else {}
    times = measure(operations(config, tokens, dtype, device), rounds, device)
    rows = []
    for operation, seconds in times.items():
        median = statistics.median(seconds)
        floor = floors[operation].seconds(known) if known is not None and floors else None
        share = figure(None if floor is None else floor / median, ".0%")
        rows.append([f"{name} {operation}", f"{1e6 * median:.0f}", figure(floor and 1e6 * floor, ".0f"), share])
    print("\n" + table([f"launch, {tokens} tokens", "us", "floor us", "of floor"], rows), flush=True)


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
