"""Product-key retrieval against all n * n keys, and its scores against whole keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import product_keys
from model.errors import ModelError
from model.initialise import Normal, draw
from model.product_keys import ProductKeys, _rank_pairs, best_slots


@pytest.mark.parametrize("prune", [True, False])
def test_the_best_slots_are_those_of_all(prune: bool) -> None:
    """1,000 drawn cases, k from 1 to all; no ties among continuous draws."""
    generator = torch.Generator().manual_seed(3)
    for case in range(1000):
        n_keys = int(torch.randint(1, 13, (), generator=generator))
        top_k = int(torch.randint(1, n_keys**2 + 1, (), generator=generator))
        one, two = torch.randn(2, 3, 2, n_keys, generator=generator, dtype=torch.float64)
        everything = (one[..., :, None] + two[..., None, :]).flatten(2)
        assert torch.equal(best_slots(one, two, top_k, prune), everything.topk(top_k, dim=-1).indices), case


def test_pruning_leaves_the_published_number_of_pairs() -> None:
    """Of 64, 256 and 1024 sums 20, 50 and 119 can win."""
    assert [len(_rank_pairs(k, k, torch.device("cpu"))[0]) for k in (8, 16, 32)] == [20, 50, 119]
    assert len(_rank_pairs(8, 1024**2, torch.device("cpu"))[0]) == 64


def _drawn_keys(heads: int, sets: int, n_keys: int, top_k: int, d_query: int) -> ProductKeys:
    keys = ProductKeys("choice", heads, sets, n_keys, top_k, d_query).double()
    with torch.no_grad():
        for name, parameter in keys.named_parameters():
            parameter.copy_(draw(Normal(1.0), name, tuple(parameter.shape), 5))
    return keys


def _whole_scores(keys: ProductKeys, query_TQD: Tensor) -> Tensor:
    """Scores of all slots by keys written out whole, [T, H, N]."""
    first, second = (half.view(keys.sets, keys.n_keys, -1) for half in (keys.first, keys.second))
    pairs = [(i, j) for i in range(keys.n_keys) for j in range(keys.n_keys)]
    whole_GND = torch.stack([torch.cat([first[:, i], second[:, j]], dim=-1) for i, j in pairs], dim=1)
    per_head = [query_TQD[:, min(h, query_TQD.shape[1] - 1)] @ whole_GND[min(h, keys.sets - 1)].T for h in range(keys.heads)]
    return torch.stack(per_head, dim=1)


@pytest.mark.parametrize(("queries", "sets"), [(3, 3), (3, 1), (1, 3), (1, 1)])
@pytest.mark.parametrize("d_query", [8, 9])
def test_winners_are_those_of_whole_keys(queries: int, sets: int, d_query: int) -> None:
    """Slots, scores and gradients; queries and sub-keys of a head's own or common to all; halves of unequal width."""
    heads = 3 if max(queries, sets) == 3 else 1
    keys, generator = _drawn_keys(heads, sets, 5, 7, d_query), torch.Generator().manual_seed(2)
    query = torch.randn(6, queries, d_query, dtype=torch.float64, generator=generator, requires_grad=True)
    winners = keys(query, {})
    score, slot = _whole_scores(keys, query).topk(7, dim=-1)
    assert torch.equal(winners.slot_THK, slot)
    assert torch.allclose(winners.score_THK, score, rtol=0, atol=1e-12)
    d_score = torch.randn(score.shape, dtype=torch.float64, generator=generator)
    inputs = [query, keys.first, keys.second]
    for actual, expected in zip(
        torch.autograd.grad(winners.score_THK, inputs, d_score), torch.autograd.grad(score, inputs, d_score), strict=True
    ):
        assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("most", "largest"), [(1, 1), (25, 2), (10**6, 7)])
def test_scores_of_some_tokens_at_a_time_choose_the_same(most: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = _drawn_keys(2, 2, 5, 3, 6)
    for tokens in (7, 0):
        query, seen = torch.randn(tokens, 2, 6, dtype=torch.float64), list[int]()
        whole = keys(query, {}).slot_THK
        monkeypatch.setattr(product_keys, "MOST_SCORES", most)
        monkeypatch.setattr(product_keys, "best_slots", lambda one, *rest, seen=seen: (seen.append(len(one)), best_slots(one, *rest))[1])
        assert torch.equal(keys(query, {}).slot_THK, whole)
        assert max(seen) == min(largest, tokens)
        monkeypatch.undo()


def test_recorded_slots_are_obeyed() -> None:
    keys, query = _drawn_keys(2, 2, 4, 3, 6), torch.randn(5, 2, 6, dtype=torch.float64)
    wanted = torch.randint(16, (5, 2, 3))
    winners = keys(query, {"choice": wanted})
    assert torch.equal(winners.slot_THK, wanted)
    assert torch.allclose(winners.score_THK, _whole_scores(keys, query).gather(-1, wanted), rtol=0, atol=1e-12)
    with pytest.raises(ModelError, match=r"'choice' has choices of shape \[4, 2, 3\], this batch needs \[5, 2, 3\]"):
        keys(query, {"choice": wanted[:4]})
