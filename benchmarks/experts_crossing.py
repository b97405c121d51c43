"""Where moving weights overtakes moving tokens: a step of a layer that is visited several times, both ways, over tokens a rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from distributed.exchange import TokenExchange
from distributed.move import MOVES, VISITS, Load, Move, run_micro_batch, trial_layer, trial_seconds
from distributed.topology import Topology
from distributed.weight_exchange import WeightExchange
from model.moe_config import SigmaMoEConfig


@dataclass(frozen=True)
class Point:
    """A step with so many tokens a rank: seconds, and bytes this rank sent, by what moved."""

    tokens: int
    seconds: dict[Move, float]
    sent: dict[Move, float]


def measure(tokens: list[int], d_model: int, experts: SigmaMoEConfig, visits: int, dtype: torch.dtype, topology: Topology) -> list[Point]:
    """One layer, `visits` visits, one micro-batch; all ranks call this."""
    points = []
    for number in tokens:
        load = Load(number, 1, 1, visits, d_model, experts, dtype)
        seconds, sent = {}, {}
        for move in MOVES:
            seconds[move] = trial_seconds(_exchange(move, topology), topology, load)
            sent[move] = _sent(_exchange(move, topology), topology, load)
        points.append(Point(number, seconds, sent))
    return points


def _exchange(move: Move, topology: Topology) -> TokenExchange | WeightExchange:
    return WeightExchange(topology) if move == "weights" else TokenExchange(topology, parts=1)


def _sent(exchange: TokenExchange | WeightExchange, topology: Topology, load: Load) -> float:
    """Bytes of a step: of every visit if tokens move, once if weights do."""
    layer, x_1TD = trial_layer(exchange, topology, load)
    run_micro_batch(layer, x_1TD, topology, last=True)
    if isinstance(exchange, WeightExchange):
        return exchange.traffic.sent
    return exchange.traffic.sent * load.visits / VISITS * load.tokens / x_1TD.shape[1]


def crossing(points: list[Point]) -> float | None:
    """Tokens a rank at which the two take equally long, on a straight line between the logarithms; None: they do not cross."""
    for below, above in pairwise(points):
        low, high = (math.log(point.seconds["tokens"] / point.seconds["weights"]) for point in (below, above))
        if low <= 0 < high:
            share = -low / (high - low)
            return math.exp(math.log(below.tokens) + share * math.log(above.tokens / below.tokens))
    return None


def report(points: list[Point], visits: int, dtype: torch.dtype) -> None:
    """Print the table and where the two cross, by the clock and by bytes."""
    print(f"\ntokens or weights: a step of one layer with {visits} visits, {str(dtype).removeprefix('torch.')}, forward and backward")
    print(f"  {'tokens a rank':>14}{'tokens, ms':>12}{'weights, ms':>13}{'tokens, MB':>12}{'weights, MB':>13}")
    for point in points:
        seconds, sent = point.seconds, point.sent
        clock = f"{1e3 * seconds['tokens']:>12.1f}{1e3 * seconds['weights']:>13.1f}"
        print(f"  {point.tokens:>14}{clock}{sent['tokens'] / 1e6:>12.2f}{sent['weights'] / 1e6:>13.2f}")
    last = points[-1]
    by_bytes = last.tokens * last.sent["weights"] / last.sent["tokens"]
    found = crossing(points)
    first = min(points[0].seconds, key=lambda move: points[0].seconds[move])
    measured = f"at about {found:.0f} tokens a rank" if found else f"not here: moving {first} is faster throughout"
    print(f"  they cross, by the clock: {measured}; by bytes alone: at {by_bytes:.0f}", flush=True)
