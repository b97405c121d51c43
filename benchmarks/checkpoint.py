"""What a checkpoint costs: synchronous and asynchronous saves beside torch.distributed.checkpoint's, on one state in one run.

    python -m benchmarks.checkpoint [--ranks 2] [--parameters 100e6] [--rounds 3] [--matmuls 150] [--folder DIR]

Gloo ranks of one thread on this machine hold a state of 12 bytes a parameter and take steps that use all of it. In every round each way
of saving has its turn, in changed order: a step with a save and the next 20, against 21 steps without. The extra time counts what the
training thread waits for and what the writer takes from it meanwhile; `behind` is the writing left after those steps, in seconds.
Two parts of it that the machine's moods do not enter: what the training thread waits in the calls, and the extra processor time.
With fewer ranks than cores the writer has a core to itself, as on the hosts of accelerators.
"""

from __future__ import annotations

import argparse
import json
import os
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


def rank_main(rank: int, folder: str, world: int, parameters: int, rounds: int, matmuls: int) -> None:
    """One rank: all rounds; rank 0 leaves its figures in `figures.json`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    topology = Topology(rank, world, rank, 1, torch.device("cpu"), "gloo", None, None, dist.group.WORLD)
    state = State(parameters, topology, matmuls)
    ways = {name: make(state, Path(folder) / name.replace(" ", "-")) for name, make in WAYS.items()}
    figures = measure(state, ways, rounds)
    figures["restore"] = {name: restore_seconds(ways[name]) for name in ("mootron", "dcp")}
    figures["bytes"] = {name: folder_bytes(ways[name].last) / state.bytes for name in ("mootron", "dcp")}
    if rank == 0:
        (Path(folder) / "figures.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def measure(state: State, ways: dict[str, Ours | Torchs], rounds: int) -> dict[str, Any]:
    """Seconds by way, a list over rounds each: `extra` time and `processor` time over steps without a save, `stall` of the calls,
    writing left `behind`.
    """
    names = list(ways)
    found: dict[str, Any] = {name: {"extra": [], "processor": [], "stall": [], "behind": []} for name in names}
    plain: list[float] = []
    for number in range(-1, rounds):  # the first round warms up: memory is touched for the first time
        without = timed_steps(state, None)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = timed_steps(state, ways[name])
            after = timed_steps(state, None)
            if number >= 0:
                plain.append(after["all"])
                found[name]["extra"].append(seconds["all"] - (without["all"] + after["all"]) / 2)
                found[name]["processor"].append(seconds["processor"] - (without["processor"] + after["processor"]) / 2)
                found[name]["stall"].append(seconds["stall"])
                found[name]["behind"].append(seconds["behind"])
            without = after
            if number < rounds - 1 and dist.get_rank() == 0:
                clear(ways[name])
            dist.barrier()
        if number >= 0 and dist.get_rank() == 0:
            print(f"round {number + 1}: extra seconds " + ", ".join(f"{name} {found[name]['extra'][-1]:.2f}" for name in names), flush=True)
    return {"world": dist.get_world_size(), "ways": found, "step": statistics.median(plain) / (1 + STEPS_AFTER), "bytes_all": state.bytes}


def timed_steps(state: State, saves: Ours | Torchs | None) -> dict[str, float]:
    """Seconds of a step, a save and 20 steps more; what is on its way to the disk before and after is not in them."""
    os.sync()
    dist.barrier()
    stall = 0.0

    def waited(call: Callable[[], object]) -> None:
        nonlocal stall
        before = time.perf_counter()
        call()
        stall += time.perf_counter() - before

    started, processor = time.perf_counter(), time.process_time()
    state.step()
    if saves is not None:
        waited(saves.save)
    for _ in range(STEPS_AFTER):
        state.step((lambda: waited(saves.settle)) if saves is not None else lambda: None)
    ended = time.perf_counter()
    if saves is not None:
        saves.finish()
    done = time.perf_counter()
    return {"all": ended - started, "stall": stall, "behind": done - ended, "processor": time.process_time() - processor}


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


def run_ranks(folder: Path, world: int, parameters: int, rounds: int, matmuls: int) -> dict[str, Any]:
    """Start the ranks and wait; their figures."""
    torch.multiprocessing.spawn(rank_main, (str(folder), world, parameters, rounds, matmuls), nprocs=world)  # a rank that fails ends all
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures


def report(figures: dict[str, Any], parameters: int, rounds: int) -> bool:
    """Print the table; whether the bars hold."""
    step, ways = figures["step"], figures["ways"]
    print(
        f"{parameters / 1e6:.0f}M parameters, {figures['bytes_all'] / 1e9:.2f} GB over {figures['world']} ranks; "
        f"{step:.3f} s a step; median (lowest to highest) of {rounds} rounds"
    )
    columns = {"extra": "extra of 21 steps, s", "stall": "wait in the calls, s", "processor": "extra processor time, s"}
    print(f"{'way of saving':<16}" + "".join(f"{words:>26}" for words in columns.values()) + f"{'behind, s':>12}")
    for name, seconds in ways.items():
        print(f"{name:<16}" + "".join(f"{spread(seconds[c]):>26}" for c in columns) + f"{statistics.median(seconds['behind']):>12.2f}")
    extra = {name: statistics.median(seconds["extra"]) for name, seconds in ways.items()}
    restore, size = figures["restore"], figures["bytes"]
    print(f"restore: mootron {restore['mootron']:.2f} s (digests verified), dcp {restore['dcp']:.2f} s (nothing verified)")
    stall = statistics.median(ways["mootron"]["stall"])  # a synchronous save costs this at least, and it is the steadier figure
    share = extra["mootron async"] / stall
    checks = [
        (f"asynchronous over the synchronous call's stall: {share:.1%} (bar {ASYNC_BAR:.0%})", share <= ASYNC_BAR),
        (f"asynchronous: {extra['mootron async']:.2f} s, dcp's {extra['dcp async']:.2f} s", extra["mootron async"] < extra["dcp async"]),
        (f"bytes on disk over the tensors': {size['mootron']:.4f} (bar {BYTES_BAR}), dcp {size['dcp']:.4f}", size["mootron"] <= BYTES_BAR),
    ]
    for text, holds in checks:
        print(f"{text}: {'within' if holds else 'ABOVE'}")
    return all(holds for _, holds in checks)


def spread(seconds: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a bar is not held."""
    parser = argparse.ArgumentParser(prog="bench checkpoint", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--ranks", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--parameters", type=float, default=100e6, help="of the whole state (default: 100e6, 1.2 GB)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every way of saving (default: 3)")
    parser.add_argument("--matmuls", type=int, default=150, help="products of 512 by 512 a step (default: 150)")
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="mootron-bench-", dir=arguments.folder))
    try:
        figures = run_ranks(folder, arguments.ranks, int(arguments.parameters), arguments.rounds, arguments.matmuls)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if report(figures, int(arguments.parameters), arguments.rounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
