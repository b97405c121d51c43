"""Expert-load figures on distributions whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from distributed.dispatch_plan import owned_experts
from distributed.load import (
    LoadCounter,
    dead_share,
    gate_mass,
    imbalance,
    never_used_share,
    relative_load,
    routes_by_owner,
    routing_entropy,
    unevenness,
    used_share,
)
from model.exchange import LocalExchange

UNIFORM = [5, 5, 5, 5]
ONE_EXPERT = [0, 0, 20, 0]
TWO_EXPERTS = [10, 0, 10, 0]
NOTHING = [0, 0, 0, 0]


def table(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def test_dead_share() -> None:
    assert dead_share(table(UNIFORM, ONE_EXPERT, TWO_EXPERTS, NOTHING)).tolist() == [0.0, 0.75, 0.5, 1.0]


def test_an_expert_is_used_when_any_visit_of_its_layer_uses_it() -> None:
    loads_VE = table([1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1])
    assert never_used_share(loads_VE, schedule=[0, 1, 0, 1]) == 2 / 8


def test_routing_entropy_is_normalised() -> None:
    entropy = routing_entropy(table(UNIFORM, ONE_EXPERT, TWO_EXPERTS, NOTHING))
    assert entropy.tolist() == pytest.approx([1.0, 0.0, math.log(2) / math.log(4), 0.0], abs=1e-12)


def test_routing_entropy_of_a_single_expert_is_even() -> None:
    assert routing_entropy(table([7])).tolist() == [1.0]


def test_imbalance_is_largest_over_mean() -> None:
    counts = torch.tensor([[4, 8, 0], [4, 0, 0]])
    assert imbalance(counts).tolist() == [1.0, 2.0, 1.0]


def test_relative_load_is_one_on_average() -> None:
    assert relative_load(table(UNIFORM, ONE_EXPERT, NOTHING)).tolist() == [[1, 1, 1, 1], [0, 0, 4, 0], [0, 0, 0, 0]]


def test_owners_take_the_contiguous_ranges_of_the_exchange() -> None:
    assert [owned_experts(7, 3, rank) for rank in range(3)] == [range(2), range(2, 4), range(4, 7)]
    assert [owned_experts(2, 4, rank) for rank in range(4)] == [range(0), range(1), range(1, 1), range(1, 2)]
    assert owned_experts(7, 1, 0) == LocalExchange().owned(7)


def test_routes_by_owner_keep_their_sum() -> None:
    loads_VE = torch.arange(14).reshape(2, 7)
    routes_VR = routes_by_owner(loads_VE, 3)
    assert routes_VR.tolist() == [[1, 5, 15], [15, 19, 36]]


def test_counter_adds_micro_batches_and_starts_anew() -> None:
    counter = LoadCounter(2, 4, torch.device("cpu"))
    counter.add([torch.tensor(UNIFORM), torch.tensor(ONE_EXPERT)])
    counter.add([torch.tensor(UNIFORM), torch.tensor(TWO_EXPERTS)])
    assert counter.take().tolist() == [[10, 10, 10, 10], [10, 0, 30, 0]]
    assert counter.take().tolist() == [NOTHING, NOTHING]


def test_counter_of_a_model_without_experts_stays_empty() -> None:
    counter = LoadCounter(0, 0, torch.device("cpu"))
    counter.add([])
    assert counter.take().shape == (0, 0)


def test_usage_and_unevenness_of_gates() -> None:
    """KL to uniform in nats: 0 even, ln N where one of N slots has all (N = 100: 4.605), ln 2 where half share evenly."""
    even, one, half = torch.ones(100), torch.zeros(100), torch.zeros(100)
    one[17], half[::2] = 3.0, 0.5
    assert (used_share(even), used_share(one), used_share(half)) == (1.0, 0.01, 0.5)
    assert unevenness(even) == pytest.approx(0.0, abs=1e-12)
    assert unevenness(one) == pytest.approx(math.log(100)) == pytest.approx(4.605, abs=1e-3)
    assert unevenness(half) == pytest.approx(math.log(2))
    assert (used_share(torch.zeros(4)), unevenness(torch.zeros(4))) == (0.0, 0.0)


def test_gate_mass_adds_gates_not_picks() -> None:
    """Tokens by heads by k, a slot picked twice by one token, a gate of zero is no use."""
    slots = torch.tensor([[[0, 3], [3, 1]], [[0, 1], [2, 3]]])
    gates = torch.tensor([[[0.75, 0.25], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    mass_N = gate_mass(slots, gates, 5)
    assert mass_N.dtype == torch.float64 and mass_N.tolist() == [1.75, 0.5, 0.0, 1.75, 0.0]
    assert used_share(mass_N) == 3 / 5
