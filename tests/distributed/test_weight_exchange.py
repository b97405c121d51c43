"""Moving weights in place of tokens: the same outputs and gradients, one gather and one reduction a bank and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exchange_work import D_EXPERT, D_MODEL, Case, whole
from test_exchange import assemble, assert_close

from distributed.topology import Topology
from distributed.weight_exchange import WeightExchange

CASES = {
    "even": Case(n_experts=8, top_k=3, tokens=(6, 6), move="weights"),
    "3 experts over 2 ranks": Case(n_experts=3, top_k=2, tokens=(9, 4), move="weights"),
    "7 experts over 4 ranks": Case(n_experts=7, top_k=4, tokens=(5, 8, 3, 6), move="weights"),
    "a rank owns none": Case(n_experts=2, top_k=1, tokens=(4, 5, 6), move="weights"),
    "a rank has no tokens": Case(n_experts=7, top_k=3, tokens=(5, 0, 4), move="weights"),
    "nobody has tokens": Case(n_experts=3, top_k=2, tokens=(0, 0), move="weights"),
    "a rank needs no gradient": Case(n_experts=7, top_k=3, tokens=(5, 4), frozen=(1,), move="weights"),
    "recompute": Case(n_experts=7, top_k=3, tokens=(5, 6, 0), recompute=True, visits=3, move="weights"),
    "three micro-batches": Case(n_experts=7, top_k=3, tokens=(5, 2, 4), visits=3, micro_batches=3, move="weights"),
    "micro-batches, recompute": Case(n_experts=7, top_k=3, tokens=(5, 6), recompute=True, micro_batches=2, move="weights"),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(pool: Any, name: str) -> None:
    case = CASES[name]
    shares = pool.run(len(case.tokens), "exchange_work:partitioned", case=case)
    found, expected = assemble(shares), whole(case)
    assert found.keys() == ({"y", "d_up", "d_down"} if case.frozen else expected.keys())
    assert_close(found, {name: expected[name] for name in found}, 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_bank_is_gathered_and_reduced_once_a_step(pool: Any, name: str) -> None:
    """Whatever the visits, micro-batches and recomputations; the order is the same on all ranks."""
    case = CASES[name]
    orders = [share["order"] for share in pool.run(len(case.tokens), "exchange_work:partitioned", case=case)]
    collectives = [[entry for entry in order if "experts" not in entry] for order in orders]
    gather = ["weights.gather float64", "await weights.gather"]
    reduce = ["weights.reduce float64", "await weights.reduce"]
    assert collectives == [[*2 * gather, *2 * reduce]] * len(case.tokens)


def test_bytes_are_those_of_the_banks(pool: Any) -> None:
    """A rank sends its experts to each other rank, and a gradient for each expert it does not own."""
    case = Case(n_experts=7, top_k=3, tokens=(6, 9, 1), visits=4, move="weights")
    expert = 2 * D_MODEL * D_EXPERT * 8
    for share, owned in zip(pool.run(3, "exchange_work:partitioned", case=case), (2, 2, 3), strict=True):
        assert share["sent"] == (2 * owned + (7 - owned)) * expert


def test_bf16_is_reduced_in_float32(pool: Any) -> None:
    case = Case(n_experts=12, top_k=8, tokens=(20, 20, 20, 20), visits=1, micro_batches=2, dtype=torch.bfloat16, move="weights")
    shares = pool.run(4, "exchange_work:partitioned", case=case)
    assert "weights.reduce float32" in shares[0]["order"] and "weights.gather bfloat16" in shares[0]["order"]
    found, expected = assemble(shares), whole(case)
    assert_close({key: value.double() for key, value in found.items()}, {key: value.double() for key, value in expected.items()}, 2e-2)


def test_changed_weights_are_gathered_anew(pool: Any) -> None:
    for seen in pool.run(2, "exchange_work:steps_with_weights", weights=(1.0, 5.0)):
        assert seen == [[1.0, 2.0], [1.0, 2.0], [5.0, 6.0], [5.0, 6.0]]


def test_what_was_sent_is_not_sent_again(pool: Any) -> None:
    """Without a word about micro-batches every backward is a step's last, whether or not the weights change after it."""
    assert pool.run(2, "exchange_work:gradients_in_a_row", times=3) == [[2.0, 4.0, 6.0]] * 2


def test_exchange_needs_a_group() -> None:
    topology = Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)
    with pytest.raises(ValueError, match="LocalExchange"):
        WeightExchange(topology)
