"""Whole training steps of MoEUT and of its dense peer, side by side: time, tokens/s, MFU, memory, real and forced-balance routing.

    ./launch.sh bench step [--sizes 44M 244M 728M] [--batch 64] [--micro-batch 16] [--compile] [--recompute visit] [--profile]

A step is forward and backward of every micro-batch, clip and AdamW by the plain engine, in bf16 with fp32 masters (fp32 on a CPU).
In every round each model makes one step, in changed order; times are medians, ratios medians of the rounds' ratios. Weights are the
initial ones. Model FLOPs are 6 for each of a token's exact multiply-accumulates, head included, nothing deducted for the causal mask
or added for recomputation. Peak memory is a model's own: what it holds between steps and what a step adds. Needs torch and pydantic.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from functools import partial
from pathlib import Path

import torch

from benchmarks.kernel_times import kernel_times
from benchmarks.results import figure, machine
from benchmarks.step_models import Contestant, Setting, balanced_records
from benchmarks.timing import Form, measure, peak_bytes, ratio
from benchmarks.tokens import corpus_tokens, zipf_tokens
from cluster.markdown import table
from distributed.peak import published_peak
from model.accounting import macs_per_token
from model.config import ModelConfig
from model.paper import DENSE_PEERS, PAPER

HEADER = ["model", "ms a step", "over dense", "tokens/s", "model TFLOP/s", "MFU", "peak GB", "of it held"]
REAL, FORCED, DENSE = "MoEUT", "MoEUT, forced balance", "dense"
HOPPER_BAR_SIZE, HOPPER = "244M", 9
KERNELS_SHOWN = 20


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a bar for Hopper is missed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = _arguments(device)
    args = parser.parse_args(argv)
    if args.batch % min(args.micro_batch, args.batch):
        parser.error(f"--batch {args.batch} is no multiple of --micro-batch {args.micro_batch}")
    if device == "cpu":
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    setting = Setting(args.batch, min(args.micro_batch, args.batch), args.seq_len, dtype, device, args.recompute, args.compile)
    print(f"{machine()}\n{_explain(setting, args)}", flush=True)
    missed: list[str] = []
    for size in args.sizes:
        if args.compile:  # else a size's layers would be compiled for the widths of the one before, too
            torch.compiler.reset()
        try:
            missed += _compare(size, setting, args)
        except torch.OutOfMemoryError:
            missed.append(f"{size} is out of memory; try a smaller --micro-batch or --recompute visit")
        gc.collect()  # compiled layers hold on to their models
    print("missed: " + "; ".join(missed) if missed else "no bar missed (they are set for 244M on Hopper)")
    return int(bool(missed))


def _arguments(device: str) -> argparse.ArgumentParser:
    large = device == "cuda"
    parser = argparse.ArgumentParser(prog="bench step", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", choices=PAPER, default=["44M", "244M", "728M"] if large else ["44M"])
    parser.add_argument("--batch", type=int, default=64 if large else 1, help="sequences of a step (64; on a CPU 1)")
    parser.add_argument("--micro-batch", type=int, default=16 if large else 1, help="sequences at a time (16; on a CPU 1)")
    parser.add_argument("--seq-len", type=int, default=1024 if large else 128, help="tokens of a sequence (1024; on a CPU 128)")
    parser.add_argument("--rounds", type=int, default=7 if large else 3, help="timed rounds, after two that are not (7; on a CPU 3)")
    parser.add_argument("--recompute", choices=["none", "experts", "visit"], default="none", help="what the backward makes again")
    parser.add_argument("--compile", action="store_true", help="torch.compile of every layer")
    parser.add_argument("--corpus", type=Path, help="take tokens from this prepared corpus, not from Zipf's law")
    parser.add_argument("--profile", action="store_true", help="also print each model's kernels by time")
    return parser


def _explain(setting: Setting, args: argparse.Namespace) -> str:
    tokens = args.corpus or "drawn by Zipf's law"
    ways = f"recompute {setting.recompute}" + (", layers compiled" if setting.compiled else "")
    return (
        f"{setting.batch} sequences of {setting.seq_len} tokens a step, {setting.micro_batch} at a time, {setting.dtype}, {ways};"
        f" tokens {tokens}; median of {args.rounds} rounds" + ("; MFU and memory: not measured on a CPU" * (setting.device == "cpu"))
    )


def _compare(size: str, setting: Setting, args: argparse.Namespace) -> list[str]:
    """Measure one size and print its table; the bars it missed."""
    draw = zipf_tokens if args.corpus is None else partial(corpus_tokens, args.corpus)
    tokens_BT = draw(setting.batch, setting.seq_len + 1, PAPER[size].vocab_size).to(setting.device)
    moeut, dense = Contestant(PAPER[size], setting), Contestant(DENSE_PEERS[size], setting)
    forced = balanced_records(moeut.config, setting.micro_batch * setting.seq_len, setting.device)
    forms: dict[str, Form] = {
        REAL: partial(moeut.step, tokens_BT),
        FORCED: partial(moeut.step, tokens_BT, forced),
        DENSE: partial(dense.step, tokens_BT),
    }
    models = {REAL: moeut, FORCED: moeut, DENSE: dense}
    for form in forms.values():
        form()  # compiles, so that what is allocated only then counts for no peak
    peaks = {name: peak_bytes(form, setting.device) for name, form in forms.items()}
    times = measure(forms, args.rounds, setting.device)
    rows = [[f"{size} {name}", *_row(models[name], times[name], times[DENSE], peaks[name])] for name in forms]
    print("\n" + table(HEADER, rows), flush=True)
    if args.profile:
        for name, form in forms.items():
            _print_profile(f"{size} {name}", form, setting.device)
    return _missed(size, times, {name: _own(models[name], peaks[name]) for name in forms})


def _row(model: Contestant, seconds: list[float], dense: list[float], peak: int | None) -> list[str]:
    step, tokens = statistics.median(seconds), model.setting.tokens
    flops = model_flops(model.config, model.setting) / step
    known = published_peak(torch.cuda.get_device_name()) if model.setting.device == "cuda" else None
    own, held = _own(model, peak), model.resident
    return [
        f"{1e3 * step:.1f}",
        f"{ratio(seconds, dense):.2f}",
        f"{tokens / step:,.0f}",
        f"{flops / 1e12:.3g}",
        figure(None if known is None else flops / known.flops, ".1%"),
        figure(own and own / 1e9, ".2f"),
        figure(held and held / 1e9, ".2f"),
    ]


def model_flops(config: ModelConfig, setting: Setting) -> float:
    """Of a step: forward once, backward twice, two FLOPs for each multiply-accumulate."""
    return 6.0 * macs_per_token(config, setting.seq_len) * setting.tokens


def _own(model: Contestant, peak: int | None) -> int | None:
    return None if peak is None or model.resident is None else model.resident + peak


def _missed(size: str, times: dict[str, list[float]], peaks: dict[str, int | None]) -> list[str]:
    if size != HOPPER_BAR_SIZE or not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != HOPPER:
        return []
    over, mine, theirs = ratio(times[REAL], times[DENSE]), peaks[REAL] or 0, peaks[DENSE] or 0
    return [f"{size} takes {over:.2f}x its dense peer's time (bar: below 1)"] * (over >= 1.0) + [
        f"{size} takes {mine / 1e9:.2f} GB, its dense peer {theirs / 1e9:.2f}"
    ] * (mine > theirs)


def _print_profile(name: str, form: Form, device: str) -> None:
    found = kernel_times(form, device)
    total = sum(kernel.seconds for kernel in found)
    rows = [
        [kernel.name[:90].replace("|", "/"), str(kernel.calls), f"{1e3 * kernel.seconds:.2f}", f"{kernel.seconds / total:.1%}"]
        for kernel in found[:KERNELS_SHOWN]
    ]
    print(f"\n{name}: {1e3 * total:.1f} ms in kernels\n" + table(["kernel", "calls", "ms", "share"], rows), flush=True)


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
