"""The expert layer, exchange included, beside DeepSpeed's MoE and a dense layer of equal work.

    python -m benchmarks.experts [--tokens 512 2048] [--dtypes bf16 fp32] [--rounds 9]

Two processes (one a GPU where there are any), expert parallelism over both, forward and backward of one layer: d_model
416, 156 experts of width 128, 12 a token. In every round each layer runs once, between barriers, in the same processes;
figures are medians over the rounds, ratios medians of the rounds' ratios. One thread a process. Then the same layer, visited
several times a step, with tokens moving and with weights moving (`expert_parallel.move`), and where the two cross.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from multiprocessing.queues import SimpleQueue
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import experts_crossing
from benchmarks.expert_layers import Layer, Setting, build_layers
from distributed.exchange import TokenExchange
from distributed.topology import Topology, close_topology, init_topology
from kernels.grouped_matmul import arithmetic_dtype
from model.moe_config import SigmaMoEConfig
from model.visit import Visit

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CROSSING = [128, 512, 2048, 8192]
WARM_UP_ROUNDS = 2
OURS_OVER_DENSE_BAR = 8.0
DEEPSPEED_OVER_OURS_BAR = 2.0


class Times(NamedTuple):
    """Seconds, an entry a round: on the clock, and of this process's CPU, which other work on the machine disturbs less."""

    wall: list[float]
    cpu: list[float]


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a bfloat16 bar is missed."""
    parser = argparse.ArgumentParser(prog="bench experts", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048], help="tokens a rank (default: 512 2048)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: bf16 fp32")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument("--crossing", type=int, nargs="*", default=CROSSING, help="tokens a rank at which both ways are timed; empty: none")
    parser.add_argument("--visits", type=int, default=8, help="visits of the layer in that (default: 8)")
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
    missed: SimpleQueue[int] = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(workers, port, arguments, missed), nprocs=workers)
    return int(missed.get() > 0)


def _rank(rank: int, workers: int, port: int, arguments: argparse.Namespace, missed: SimpleQueue[int]) -> None:
    """One process: measure all settings; rank 0 prints and counts the bars missed."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(workers), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    topology = init_topology(workers, timeout_seconds=300)
    experts = SigmaMoEConfig(n_experts=arguments.n_experts, top_k=arguments.top_k)
    settings = [Setting(tokens, DTYPES[name], arguments.d_model, experts) for tokens in arguments.tokens for name in arguments.dtypes]
    if rank == 0:
        print(_explain(settings[0], topology), flush=True)
    n_missed = 0
    for setting in settings:
        layers = build_layers(setting, topology)
        times = time_layers(layers, setting, topology, arguments.rounds)
        sent = bytes_sent(layers["mootron"], setting, topology)
        if rank == 0:
            n_missed += _report(setting, topology, times, sent)
    if arguments.crossing and topology.world > 1:
        dtype = torch.bfloat16 if topology.device.type == "cuda" else torch.float32
        points = experts_crossing.measure(arguments.crossing, arguments.d_model, experts, arguments.visits, dtype, topology)
        if rank == 0:
            experts_crossing.report(points, arguments.visits, dtype)
    if rank == 0:
        missed.put(n_missed)
    close_topology(topology)


def time_layers(layers: dict[str, Layer], setting: Setting, topology: Topology, rounds: int) -> dict[str, Times]:
    """Forward and backward of every layer in every round, barrier to barrier, so that the slowest rank counts."""
    x_1TD, dy_1TD = _inputs(setting, topology)
    times = {name: Times([], []) for name in layers}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, layer in layers.items():
            _meet(topology)
            started, worked = time.perf_counter(), time.process_time()
            layer.call(x_1TD).backward(dy_1TD)
            _meet(topology)
            if number >= WARM_UP_ROUNDS:
                times[name].wall.append(time.perf_counter() - started)
                times[name].cpu.append(time.process_time() - worked)
            layer.module.zero_grad(set_to_none=True)
            x_1TD.grad = None
    return times


def bytes_sent(layer: Layer, setting: Setting, topology: Topology) -> dict[str, float]:
    """Bytes to other ranks in one forward and backward of this rank, and copies a route; empty where nothing moves."""
    exchange = layer.module.exchange
    if not isinstance(exchange, TokenExchange):
        return {}
    x_1TD, dy_1TD = _inputs(setting, topology)
    record: dict = {}
    before = exchange.traffic.sent, exchange.traffic.one_copy_an_expert
    layer.module(x_1TD, x_1TD, Visit(record=record))[0].backward(dy_1TD)
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
    if topology.world > 1:
        dist.barrier(topology.world_group)


def _explain(setting: Setting, topology: Topology) -> str:
    experts, d_model, ranks = setting.experts, setting.d_model, topology.expert_parallel
    lines = [
        f"{topology.world} processes on {topology.device.type} ({topology.backend}), one thread each, expert parallelism {ranks};"
        f" {experts.n_experts} experts {d_model} -> {experts.d_expert} -> {d_model}, {experts.top_k} a token, one router for all",
        "mootron: exact, no token dropped, sigmoid weights; router, exchange and experts are timed. overlapped: the batch cut in two parts",
        f"dense: {d_model} -> {experts.top_k * experts.d_expert} -> {d_model}: the same multiply-accumulates, no router, nothing sent",
        f"deepspeed: deepspeed.moe.layer.MoE with k={experts.top_k} (its topkgating: softmax renormalised over the chosen)",
        "  drop: capacity factor 1.0, routes beyond an even share are left out; dropless: every expert padded to the fullest one's load",
    ]
    if arithmetic_dtype(torch.empty(0, dtype=torch.bfloat16, device=topology.device)) != torch.bfloat16:
        lines.append("this CPU has no bfloat16 instructions: torch emulates them for dense and deepspeed; mootron multiplies in float32")
    return "\n".join(lines)


def _report(setting: Setting, topology: Topology, times: dict[str, Times], sent: dict[str, float]) -> int:
    """Print one setting; how many of its bars are missed (they are set for bfloat16)."""
    dtype = next(name for name, value in DTYPES.items() if value == setting.dtype)
    print(f"\n{setting.tokens} tokens a rank, {dtype}: forward and backward, median of {len(times['dense'].wall)} rounds")
    print(f"  {'':20}{'ms':>9}{'cpu ms':>9}{'over dense':>12}{'over mootron':>14}")
    missed = []
    for name, spent in times.items():
        wall, cpu = (statistics.median(seconds) * 1e3 for seconds in spent)
        over_dense, over_ours = (_ratio(spent.wall, times[other].wall) for other in ("dense", "mootron"))
        print(f"  {name:20}{wall:9.1f}{cpu:9.1f}{over_dense:12.2f}{over_ours:14.2f}")
        if name == "mootron" and over_dense > OURS_OVER_DENSE_BAR:
            missed.append(f"mootron takes more than {OURS_OVER_DENSE_BAR:g}x the dense layer")
        if name.startswith("deepspeed") and over_ours < DEEPSPEED_OVER_OURS_BAR:
            missed.append(f"{name} takes less than {DEEPSPEED_OVER_OURS_BAR:g}x mootron")
    if sent:
        theory = copies_a_route(topology.expert_parallel, setting.experts.top_k)
        rank, expert, ratio = (sent[name] for name in ("one copy a rank", "one copy an expert", "ratio"))
        print(f"  rank 0 sent {rank / 1e6:.2f} MB: one copy a rank, routes and weights included; one copy an expert: {expert / 1e6:.2f} MB")
        print(f"  rows sent a route: {ratio:.4f}; m(1-(1-1/m)^K)/K = {theory:.4f} for even routing over m={topology.expert_parallel}")
    if dtype != "bf16":
        return 0
    print("  bars: " + ("; ".join(missed) if missed else "met"), flush=True)
    return len(missed)


def _ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds: what slows a whole round down falls out."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
