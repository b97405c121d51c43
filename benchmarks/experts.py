"""The expert layer, exchange included, beside DeepSpeed's MoE and a dense layer of equal work.

    python -m benchmarks.experts [--tokens 512 2048] [--dtypes bf16 fp32] [--rounds 9]

Two processes (one a GPU where there are any), expert parallelism over both, forward and backward of one layer: d_model
416, 156 experts of width 128, 12 a token. In every round each layer runs once, between barriers, in the same processes;
figures are medians over the rounds, ratios medians of the rounds' ratios. One thread a process.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.expert_layers import Layer, Setting, build_layers
from distributed.exchange import TokenExchange
from distributed.topology import Topology, close_topology, init_topology
from kernels.grouped_matmul import arithmetic_dtype
from model.config import SigmaMoEConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WARM_UP_ROUNDS = 2
OURS_OVER_DENSE_BAR = 8.0
DEEPSPEED_OVER_OURS_BAR = 2.0


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a bfloat16 bar is missed."""
    parser = argparse.ArgumentParser(prog="bench experts", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048], help="tokens a rank (default: 512 2048)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: bf16 fp32")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument("--d-model", type=int, default=416)
    parser.add_argument("--n-experts", type=int, default=156)
    parser.add_argument("--top-k", type=int, default=12)
    arguments = parser.parse_args(argv)
    workers = torch.cuda.device_count() or 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Read when a process first imports torch, so it must be set before any is started.
    os.environ["OMP_NUM_THREADS"] = "1"
    missed = mp.get_context("spawn").Value("i", 0)
    mp.spawn(_rank, args=(workers, port, arguments, missed), nprocs=workers)
    return int(missed.value > 0)


def _rank(rank: int, workers: int, port: int, arguments: argparse.Namespace, missed: mp.Value) -> None:
    """One process: measure all settings; rank 0 prints and counts the bars missed."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(workers), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    topology = init_topology(workers, timeout_seconds=300)
    experts = SigmaMoEConfig(n_experts=arguments.n_experts, top_k=arguments.top_k)
    settings = [Setting(tokens, DTYPES[name], arguments.d_model, experts) for tokens in arguments.tokens for name in arguments.dtypes]
    if rank == 0:
        print(_explain(settings[0], topology), flush=True)
    for setting in settings:
        layers = build_layers(setting, topology)
        seconds = time_layers(layers, setting, topology, arguments.rounds)
        sent = bytes_sent(layers["mootron"], setting, topology)
        if rank == 0:
            missed.value += _report(setting, topology, seconds, sent)
    close_topology(topology)


def time_layers(layers: dict[str, Layer], setting: Setting, topology: Topology, rounds: int) -> dict[str, list[float]]:
    """Seconds of forward and backward, a list over rounds for each layer; barrier to barrier, so the slowest rank counts."""
    x_1TD, dy_1TD = _inputs(setting, topology)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(WARM_UP_ROUNDS + rounds):
        for name, layer in layers.items():
            _meet(topology)
            started = time.perf_counter()
            layer.call(x_1TD).backward(dy_1TD)
            _meet(topology)
            seconds[name].append(time.perf_counter() - started)
            layer.module.zero_grad(set_to_none=True)
            x_1TD.grad = None
    return {name: spent[WARM_UP_ROUNDS:] for name, spent in seconds.items()}


def bytes_sent(layer: Layer, setting: Setting, topology: Topology) -> dict[str, float]:
    """Bytes to other ranks in one forward and backward of this rank, and copies a route; empty where nothing moves."""
    exchange = layer.module.exchange
    if not isinstance(exchange, TokenExchange):
        return {}
    x_1TD, dy_1TD = _inputs(setting, topology)
    record: dict = {}
    before = exchange.traffic.sent, exchange.traffic.one_copy_an_expert
    layer.module(x_1TD, x_1TD, record)[0].backward(dy_1TD)
    plans = [part["plan"] for part in record["feed_forward.exchange"].values()]
    return {
        "one copy a rank": exchange.traffic.sent - before[0],
        "one copy an expert": exchange.traffic.one_copy_an_expert - before[1],
        "ratio": sum(sum(plan.sent_rows) for plan in plans) / sum(sum(plan.sent_routes) for plan in plans),
    }


def copies_a_route(ranks: int, top_k: int) -> float:
    """m (1 - (1 - 1/m)^K) / K: ranks that an evenly routed token reaches, for each of its K experts."""
    return ranks * (1 - (1 - 1 / ranks) ** top_k) / top_k


def _inputs(setting: Setting, topology: Topology) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + topology.rank)
    x_1TD, dy_1TD = torch.randn(2, 1, setting.tokens, setting.d_model, generator=generator).to(topology.device, setting.dtype)
    return x_1TD.requires_grad_(), dy_1TD


def _meet(topology: Topology) -> None:
    if topology.device.type == "cuda":
        torch.cuda.synchronize(topology.device)
    dist.barrier(topology.world_group)


def _explain(setting: Setting, topology: Topology) -> str:
    experts, emulated = setting.experts, arithmetic_dtype(torch.empty(0, dtype=torch.bfloat16, device=topology.device)) != torch.bfloat16
    lines = [
        f"{topology.world} processes on {topology.device.type}, {topology.backend}, one thread each, expert parallelism {topology.expert_parallel}",
        f"{experts.n_experts} experts {setting.d_model} -> {experts.d_expert} -> {setting.d_model}, {experts.top_k} a token, one router for all",
        "mootron: exact, no token dropped; sigmoid weights; router, exchange and experts timed, forward and backward",
        f"dense: {setting.d_model} -> {experts.top_k * experts.d_expert} -> {setting.d_model}, the same multiply-accumulates, no router, nothing sent",
        f"deepspeed: deepspeed.moe.layer.MoE with k={experts.top_k} (its topkgating: softmax renormalised over the chosen); drop: capacity"
        " factor 1.0, so routes beyond an even share are left out; dropless: every expert padded to the fullest one's load",
    ]
    if emulated:
        lines.append("this CPU has no bfloat16 instructions: torch emulates them for dense and deepspeed; mootron multiplies in float32")
    return "\n".join(lines)


def _report(setting: Setting, topology: Topology, seconds: dict[str, list[float]], sent: dict[str, float]) -> int:
    """Print one setting; how many of its bars are missed (they are set for bfloat16)."""
    dtype = next(name for name, value in DTYPES.items() if value == setting.dtype)
    print(f"\n{setting.tokens} tokens a rank, {dtype}: forward and backward, median of {len(seconds['dense'])} rounds")
    for name, spent in seconds.items():
        print(f"  {name:20}{statistics.median(spent) * 1e3:10.1f} ms   (from {min(spent) * 1e3:.1f} to {max(spent) * 1e3:.1f})")
    missed = 0
    ratio = _ratio(seconds["mootron"], seconds["dense"])
    missed += _print_ratio("mootron / dense", ratio, ratio <= OURS_OVER_DENSE_BAR, f"at most {OURS_OVER_DENSE_BAR:g}", dtype)
    for rival in sorted(seconds.keys() - {"mootron", "dense"}):
        ratio = _ratio(seconds[rival], seconds["mootron"])
        missed += _print_ratio(
            f"{rival} / mootron", ratio, ratio >= DEEPSPEED_OVER_OURS_BAR, f"at least {DEEPSPEED_OVER_OURS_BAR:g}", dtype
        )
    if sent:
        theory = copies_a_route(topology.expert_parallel, setting.experts.top_k)
        print(f"  sent by rank 0: {sent['one copy a rank'] / 1e6:.2f} MB with one copy a rank (routes and weights included),")
        print(f"    {sent['one copy an expert'] / 1e6:.2f} MB of rows with one copy an expert")
        print(
            f"    rows sent a route {sent['ratio']:.4f}; m(1-(1-1/m)^K)/K = {theory:.4f} with m={topology.expert_parallel} and even routing"
        )
    return missed


def _ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds: what slows a whole round down falls out."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _print_ratio(name: str, ratio: float, met: bool, bar: str, dtype: str) -> int:
    judged = dtype == "bf16"
    print(f"  {name:32}{ratio:8.2f}" + (f"   bar {bar}: {'met' if met else 'MISSED'}" if judged else ""))
    return int(judged and not met)


if __name__ == "__main__":
    raise SystemExit(main())
