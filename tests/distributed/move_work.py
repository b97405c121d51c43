"""What ranks run for test_move.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distributed import move
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder
from distributed.topology import init_topology
from distributed.weight_exchange import WeightExchange


def settle(folder: str, values: dict[str, Any], seconds: list[dict[str, float]] | None, most_of_memory: float = 0.25) -> tuple[str, bool]:
    """What moves, and whether the random state is as it was. `seconds`: what each rank's trial is to find; None: a real one."""
    size = values["expert_parallel"]["size"]
    topology = init_topology(size, device="cpu", timeout_seconds=30, use_deepspeed=False)
    trial, limit = move.trial_seconds, move.MOST_OF_MEMORY
    if seconds is not None:
        found = seconds[topology.rank]
        move.trial_seconds = lambda exchange, topology, load: found["weights" if isinstance(exchange, WeightExchange) else "tokens"]
    move.MOST_OF_MEMORY = most_of_memory
    before = torch.get_rng_state()
    try:
        settled = move.settle_move(check_recipe(values, "test"), RunFolder(Path(folder)), topology)
    finally:
        move.trial_seconds, move.MOST_OF_MEMORY = trial, limit
    return settled.expert_parallel.move, torch.equal(before, torch.get_rng_state())
