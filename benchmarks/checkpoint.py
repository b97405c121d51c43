"""What a checkpoint costs: synchronous and asynchronous saves beside torch.distributed.checkpoint's, on one state in one run.

    python -m benchmarks.checkpoint [--ranks 2] [--parameters 100e6] [--rounds 8] [--passes 50] [--folder DIR]

Gloo ranks of one thread on this machine hold a state of 12 bytes a parameter and take steps that use all of it. In every round each way
of saving has its turn, in changed order: a step with a save and the next 20, between blocks of 21 steps without one. The extra time
counts what the training thread waits for and what the writer takes from it meanwhile; `behind` is the writing left after those steps.
A shared machine slows single steps down by more than a save costs, so the extra time is the sum over the 21 places of the median over
the rounds of (seconds of that step - median of the steps around the block); its range is the bootstrap's 5% to 95% over the rounds.
With fewer ranks than cores the writer has a core to itself, as on the hosts of accelerators.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.checkpoint_state import WAYS, Ours, State, Torchs, clear
from distributed.topology import Topology

STEPS_AFTER = 20
ASYNC_BAR, BYTES_BAR = 0.10, 1.02


def rank_main(rank: int, folder: str, world: int, parameters: int, rounds: int, passes: int) -> None:
    """One rank: all rounds; rank 0 leaves its figures in `figures.json`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    topology = Topology(rank, world, rank, 1, torch.device("cpu"), "gloo", None, None, dist.group.WORLD)
    state = State(parameters, topology, passes)
    ways = {name: make(state, Path(folder) / name.replace(" ", "-")) for name, make in WAYS.items()}
    figures = measure(state, ways, rounds)
    figures["restore"] = {name: restore_seconds(ways[name]) for name in ("mootron", "dcp")}
    figures["bytes"] = {name: folder_bytes(ways[name].last) / state.bytes for name in ("mootron", "dcp")}
    if rank == 0:
        (Path(folder) / "figures.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def measure(state: State, ways: dict[str, Ours | Torchs], rounds: int) -> dict[str, Any]:
    """Seconds by way, a list over rounds each: `extra` (21 of them, one a step), waits in the calls (`stall`), writing left `behind`."""
    names = list(ways)
    found: dict[str, Any] = {name: {"extra": [], "stall": [], "behind": []} for name in names}
    plain: list[float] = []
    for number in range(-1, rounds):  # the first round warms up: memory is touched for the first time
        before = timed_steps(state, None)["steps"]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            block = timed_steps(state, ways[name])
            after = timed_steps(state, None)["steps"]
            usual = statistics.median(before + after)
            if number >= 0:
                plain.append(usual)
                found[name]["extra"].append([seconds - usual for seconds in block["steps"]])
                found[name]["stall"].append(block["stall"])
                found[name]["behind"].append(block["behind"])
            before = after
            if number < rounds - 1 and dist.get_rank() == 0:
                clear(ways[name])
            dist.barrier()
        if number >= 0 and dist.get_rank() == 0:
            words = ", ".join(f"{name} {sum(found[name]['extra'][-1]):.2f}" for name in names)
            print(f"round {number + 1}: extra seconds of 21 steps: {words}", flush=True)
    return {"world": dist.get_world_size(), "ways": found, "step": statistics.median(plain), "bytes_all": state.bytes}


def timed_steps(state: State, saves: Ours | Torchs | None) -> dict[str, Any]:
    """Seconds of each of 21 steps, the first with a save; what is on its way to the disk before and after is not in them."""
    os.sync()
    dist.barrier()
    stall = 0.0

    def waited(call: Callable[[], object]) -> None:
        nonlocal stall
        before = time.perf_counter()
        call()
        stall += time.perf_counter() - before

    def step() -> None:
        state.step((lambda: waited(saves.settle)) if saves is not None else lambda: None)

    seconds = []
    for number in range(1 + STEPS_AFTER):
        started = time.perf_counter()
        step()
        if saves is not None and number == 0:
            waited(saves.save)
        seconds.append(time.perf_counter() - started)
    ended = time.perf_counter()
    if saves is not None:
        saves.finish()
    return {"steps": seconds, "stall": stall, "behind": time.perf_counter() - ended}


def restore_seconds(saves: Ours | Torchs) -> float:
    """Seconds to find the last checkpoint and load it; its files are in the page cache."""
    dist.barrier()
    started = time.perf_counter()
    saves.load()
    dist.barrier()
    return time.perf_counter() - started


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a checkpoint."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def run_ranks(folder: Path, world: int, parameters: int, rounds: int, passes: int) -> dict[str, Any]:
    """Start the ranks and wait; their figures."""
    torch.multiprocessing.spawn(rank_main, (str(folder), world, parameters, rounds, passes), nprocs=world)  # a rank that fails ends all
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures


def report(figures: dict[str, Any], parameters: int, rounds: int) -> bool:
    """Print the table; whether the bars hold."""
    step, ways = figures["step"], figures["ways"]
    print(
        f"{parameters / 1e6:.0f}M parameters, {figures['bytes_all'] / 1e9:.2f} GB over {figures['world']} ranks; "
        f"{step:.3f} s a step; {rounds} rounds"
    )
    print(f"{'way of saving':<16}{'extra of 21 steps, s':>28}{'wait in the calls, s':>28}{'behind, s':>12}")
    extra = {}
    for name, seconds in ways.items():
        extra[name] = total(seconds["extra"])
        low, high = bootstrap(seconds["extra"])
        words = f"{extra[name]:.2f} ({low:.2f} to {high:.2f})"
        print(f"{name:<16}{words:>28}{spread(seconds['stall']):>28}{statistics.median(seconds['behind']):>12.2f}")
    restore, size = figures["restore"], figures["bytes"]
    print(f"restore: mootron {restore['mootron']:.2f} s (digests verified), dcp {restore['dcp']:.2f} s (nothing verified)")
    share = extra["mootron async"] / extra["mootron"]
    checks = [
        (f"asynchronous over synchronous: {share:.1%} (bar {ASYNC_BAR:.0%})", share <= ASYNC_BAR),
        (f"asynchronous: {extra['mootron async']:.2f} s, dcp's {extra['dcp async']:.2f} s", extra["mootron async"] < extra["dcp async"]),
        (f"bytes on disk over the tensors': {size['mootron']:.4f} (bar {BYTES_BAR}), dcp {size['dcp']:.4f}", size["mootron"] <= BYTES_BAR),
    ]
    for text, holds in checks:
        print(f"{text}: {'within' if holds else 'ABOVE'}")
    return all(holds for _, holds in checks)


def total(extra: list[list[float]]) -> float:
    """Sum over the places of a block of the median over rounds."""
    return sum(statistics.median(place) for place in zip(*extra, strict=True))


def bootstrap(extra: list[list[float]], draws: int = 1000) -> tuple[float, float]:
    """Where 90% of the totals lie when rounds are drawn again, with replacement."""
    generator = random.Random(0)
    totals = sorted(total(generator.choices(extra, k=len(extra))) for _ in range(draws))
    return totals[draws // 20], totals[-1 - draws // 20]


def spread(seconds: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a bar is not held."""
    parser = argparse.ArgumentParser(prog="bench checkpoint", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--ranks", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--parameters", type=float, default=100e6, help="of the whole state (default: 100e6, 1.2 GB)")
    parser.add_argument("--rounds", type=int, default=8, help="turns of every way of saving (default: 8)")
    parser.add_argument("--passes", type=int, default=50, help="passes over 67 MB a step (default: 50)")
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="mootron-bench-", dir=arguments.folder))
    try:
        figures = run_ranks(folder, arguments.ranks, int(arguments.parameters), arguments.rounds, arguments.passes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if report(figures, int(arguments.parameters), arguments.rounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
