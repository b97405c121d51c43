"""What moves between expert-parallel ranks in a run with `expert_parallel.move: auto`: tokens or weights, by a trial.

Bytes alone say that weights win above some 1,200 tokens a rank and step (`bench experts` shows where), but
a link's latency, packing and the shapes that experts work on count as well. So one layer of the run's own sizes makes a
small forward and backward of each kind on the run's own ranks, and what a step would take of each is reckoned from it. The
answer is kept in the run's folder: with the same ranks a later start takes it from there, so that it repeats every bit.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.files import write_text
from distributed import collectives
from distributed.batching import micro_batches
from distributed.build import build_exchange, choose_dtype
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.step_balance import looks_ahead
from distributed.topology import Topology
from model.exchange import Exchange
from model.feed_forward import RoutedFeedForward
from model.moe_config import RoutedConfig
from model.visit import Visit

Move = Literal["tokens", "weights"]
MOVES: tuple[Move, ...] = ("tokens", "weights")
MOST_TOKENS = 8192
VISITS, ROUNDS = 2, 3
MOST_OF_MEMORY = 0.25


@dataclass(frozen=True)
class Load:
    """What a rank's step asks of the exchange: micro-batches of so many tokens, through so many visits of layers with routed experts.

    `looks_ahead`: whether a forward of each comes before all of them (`distributed.step_balance`).
    """

    tokens: int
    micro_batches: int
    layers: int
    visits: int
    d_model: int
    experts: RoutedConfig
    dtype: torch.dtype
    looks_ahead: bool = False

    def gathered_bytes(self) -> int:
        """Of all gathered banks, their gradients, and the gradients' sum over micro-batches where there are several."""
        entries = 2 * self.layers * self.experts.n_experts * self.d_model * self.experts.d_expert
        return entries * (2 * self.dtype.itemsize + (4 if self.micro_batches > 1 else 0))


def settle_move(recipe: Recipe, run: RunFolder, topology: Topology) -> Recipe:
    """The recipe with `auto` decided, the same on all ranks; all must call this."""
    if recipe.expert_parallel.move != "auto":
        return recipe
    return _moving(recipe, "tokens" if topology.expert_parallel == 1 else _decide(recipe, run, topology))


def seconds_a_step(recipe: Recipe, topology: Topology, load: Load) -> dict[Move, float]:
    """What the experts and their exchange take of a step, of the slowest rank, if tokens move and if weights do."""
    mine = [trial_seconds(build_exchange(_moving(recipe, move), topology), topology, load) for move in MOVES]
    slowest = torch.tensor(mine, dtype=torch.float64, device=topology.device)
    collectives.all_reduce("move.seconds", slowest, topology.world_group, dist.ReduceOp.MAX)
    return dict(zip(MOVES, slowest.tolist(), strict=True))


def load_of(recipe: Recipe, topology: Topology) -> Load:
    """The load of the busiest rank of a run."""
    model, train = recipe.model, recipe.train
    experts, layers = model.feed_forward, model.routed_layers
    assert isinstance(experts, RoutedConfig)
    shares = micro_batches(range(train.global_batch), topology.world, topology.world - 1, train.micro_batch)
    tokens = max(map(len, shares)) * recipe.data.seq_len
    dtype = choose_dtype(train.precision, topology.device)
    ahead = looks_ahead(model, len(shares), topology.world)
    visits = sum(layer in layers for layer in model.depth.schedule())
    return Load(tokens, len(shares), len(layers), visits, model.d_model, experts, dtype, ahead)


def _decide(recipe: Recipe, run: RunFolder, topology: Topology) -> Move:
    load = load_of(recipe, topology)
    layout = {
        "world": topology.world,
        "expert_parallel": topology.expert_parallel,
        "tokens": load.tokens,
        "micro_batches": load.micro_batches,
    }
    kept = _kept(run, layout) if topology.rank == 0 else 0
    if agreed := collectives.largest(kept, topology, "move.kept"):
        return MOVES[agreed - 1]
    if collectives.any_rank(load.gathered_bytes() > MOST_OF_MEMORY * _memory(topology), topology, "move.memory"):
        seconds, move, reason = {}, MOVES[0], f"all banks gathered would take {load.gathered_bytes() / 1e9:.1f} GB a rank"
    else:
        seconds = seconds_a_step(recipe, topology, load)
        move = min(MOVES, key=lambda name: seconds[name])
        reason = "experts and exchange of a step: " + ", ".join(f"{name} {1e3 * taken:.1f} ms" for name, taken in seconds.items())
    if topology.rank == 0:
        print(f"expert_parallel.move is auto: {move} move ({reason})", flush=True)
        write_text(run.path / "move.json", json.dumps({"move": move, "layout": layout, "seconds_a_step": seconds, "reason": reason}))
    return move


def _kept(run: RunFolder, layout: dict[str, int]) -> int:
    """What an earlier start chose for this layout, as its place in `MOVES` from 1; 0: nothing."""
    try:
        found = json.loads((run.path / "move.json").read_text())
        return MOVES.index(found["move"]) + 1 if found["layout"] == layout else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def trial_seconds(exchange: Exchange, topology: Topology, load: Load) -> float:
    """Seconds of a step on this rank: what every visit takes, and what is done once a step and layer."""
    layer, x_1TD = trial_layer(exchange, topology, load)
    alone, beside = [], []
    for _ in range(1 + ROUNDS):
        exchange.weights_changed()
        alone.append(run_micro_batch(layer, x_1TD, topology, last=True, looks_ahead=load.looks_ahead))
        exchange.weights_changed()
        run_micro_batch(layer, x_1TD, topology, last=False, looks_ahead=load.looks_ahead)
        beside.append(run_micro_batch(layer, x_1TD, topology, last=False, looks_ahead=load.looks_ahead))
    exchange.weights_changed()
    visit = statistics.median(beside[1:]) / VISITS * load.tokens / x_1TD.shape[1]
    once = max(0.0, statistics.median(alone[1:]) - statistics.median(beside[1:]))
    return load.micro_batches * load.visits * visit + load.layers * once


def trial_layer(exchange: Exchange, topology: Topology, load: Load) -> tuple[RoutedFeedForward, Tensor]:
    """A layer with drawn weights, the same routers on all ranks, and tokens; the trainer's random state is left alone."""
    generator = torch.Generator().manual_seed(1)
    layer = RoutedFeedForward(load.d_model, load.experts, exchange).eval()  # expert dropout would draw from the trainer's random state
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=load.d_model**-0.5, generator=generator)
    x_1TD = torch.randn(1, min(load.tokens, MOST_TOKENS), load.d_model, generator=generator)
    return layer.to(topology.device, load.dtype), x_1TD.to(topology.device, load.dtype).requires_grad_()


def run_micro_batch(layer: RoutedFeedForward, x_1TD: Tensor, topology: Topology, last: bool, looks_ahead: bool = False) -> float:
    """Seconds of some visits forward and backward, barrier to barrier; of another forward before them where it `looks_ahead`."""
    _meet(topology)
    started = time.perf_counter()
    if looks_ahead:
        with torch.no_grad():
            _forward(layer, x_1TD)
    y_1TD = _forward(layer, x_1TD)
    layer.exchange.before_backward(last)
    torch.autograd.grad(y_1TD, [x_1TD, *layer.parameters()], torch.ones_like(y_1TD))
    _meet(topology)
    return time.perf_counter() - started


def _forward(layer: RoutedFeedForward, x_1TD: Tensor) -> Tensor:
    for _ in range(VISITS):
        x_1TD, _ = layer(x_1TD, x_1TD, Visit())
    return x_1TD


def _meet(topology: Topology) -> None:
    if topology.device.type == "cuda":
        torch.cuda.synchronize(topology.device)
    collectives.barrier("move.trial", topology)


def _moving(recipe: Recipe, move: Move) -> Recipe:
    return recipe.model_copy(update={"expert_parallel": recipe.expert_parallel.model_copy(update={"move": move})})


def _memory(topology: Topology) -> int:
    """Bytes of the accelerator, or this rank's part of the host's."""
    if topology.device.type == "cuda":
        return int(torch.cuda.get_device_properties(topology.device).total_memory)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", topology.world))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_here
