"""Ranks that feed Metrics with figures known in advance, for test_metrics.py; also runs in the pool's workers.

Two visits of one layer (`group: 1, repeats: 2`), seven experts, three steps of one micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from distributed.clock import HostTimeline, StepClock
from distributed.metrics import Metrics
from distributed.recipe import Recipe
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder
from distributed.topology import Topology, init_topology
from kernels.spans import span

N_EXPERTS = 7
STEPS = 3
TOKENS = 8


def recipe(expert_parallel: int = 1, heat_maps_every: int = STEPS, move: str = "tokens", **model: Any) -> Recipe:
    """A small recipe with two visits and seven experts; `model` changes fields of that name."""
    return check_recipe(
        {
            "name": "small",
            "model": {
                "vocab_size": 300,
                "d_model": 8,
                "depth": {"group": 1, "repeats": 2},
                "attention": {"kind": "dense", "n_heads": 2, "d_head": 4},
                "feed_forward": {"kind": "sigma_moe", "n_experts": N_EXPERTS, "d_expert": 4, "top_k": 2},
                **model,
            },
            "data": {
                "folder": "corpora/small",
                "sources": [{"name": "python", "kind": "installed_python"}],
                "tokenizer": {"vocab_size": 300},
                "seq_len": 4,
            },
            "train": {"steps": 12, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
            "expert_parallel": {"size": expert_parallel, "move": move},
            "logging": {"every": STEPS, "heat_maps_every": heat_maps_every},
        },
        "test",
    )


def lone() -> Topology:
    """A world of one without a process group."""
    return Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)


class HandClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def loads(rank: int) -> list[torch.Tensor]:
    """A rank's routes in one micro-batch: rank 0 spreads them in the first visit, all ranks flock to expert 6 in the second."""
    first = torch.full((N_EXPERTS,), 2) if rank == 0 else torch.tensor([0, 0, 0, 0, 0, 0, 14])
    return [first, torch.tensor([0, 0, 0, 0, 0, 0, 14])]


def choices(rank: int, step: int) -> list[dict[str, Any]]:
    """Four tokens of two picks in both visits. Rank 0's last micro-batch takes one of two again, the others' all; before, none."""
    first = torch.tensor([[0, 1]] * 4)
    again = torch.tensor([[1, 2]] * 4) if rank == 0 else first
    return [{"feed_forward": first}, {"feed_forward": again if step == STEPS else first + 2}]


def train(
    run: RunFolder, topology: Topology, start: int = 0, stop: int = STEPS, skip: int | None = None, move: str = "tokens"
) -> dict[str, Any]:
    """Steps start+1..stop with one logging at the end; the loss of a step is its number, whatever the world.

    Each step takes rank + 1 seconds of forward, of which half in the experts.
    """
    hand = HandClock()
    clock = StepClock(topology.device, HostTimeline(hand))
    metrics = Metrics(run, recipe(topology.expert_parallel, move=move), topology, start, clock)
    for step in range(start + 1, stop + 1):
        with clock.part("forward"):
            hand.seconds += (topology.rank + 1) / 2
            with span("experts"):
                hand.seconds += (topology.rank + 1) / 2
        metrics.observe(SimpleNamespace(loads=loads(topology.rank), records=choices(topology.rank, step)), TOKENS)
        share = torch.tensor(float("nan") if step == skip else step / topology.world)
        metrics.step(step, share, share / 10, grad_norm=step / 2, lr=1e-3, tokens=TOKENS * topology.world, repeats=2, skipped=step == skip)
    metrics.log(stop)
    metrics.validation(stop, {"python": 2.0})
    metrics.close()
    return metrics.figures


def train_rank(folder: str, expert_parallel: int, move: str = "tokens") -> dict[str, Any]:
    """One rank of a world that a launcher made."""
    topology = init_topology(expert_parallel, device="cpu", timeout_seconds=30, use_deepspeed=False)
    return train(RunFolder(Path(folder)), topology, move=move)
