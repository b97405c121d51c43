"""The plan of a dispatch: who owns what, one row a token and rank, and its inverse.

Shape suffixes: T tokens, K experts a token chose, R rows sent, Q routes, D width.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from distributed.dispatch_plan import Plan, complete, owner_bounds, route, sum_answers


def plan_for(expert_TK: Tensor, n_experts: int, size: int) -> Plan:
    """The plan of a rank that only looks at what it sends."""
    routing = route(expert_TK, torch.tensor(owner_bounds(n_experts, size)))
    sent = routing.counts_M2.tolist()
    return complete(routing, sent, sent)


def random_choices(n_tokens: int, n_experts: int, top_k: int) -> Tensor:
    return torch.rand(n_tokens, n_experts, generator=torch.Generator().manual_seed(1)).topk(top_k).indices


@pytest.mark.parametrize(("n_experts", "size"), [(155, 4), (3, 2), (7, 4), (2, 3), (1, 4), (8, 1)])
def test_owners_cover_all_experts_evenly(n_experts: int, size: int) -> None:
    bounds = owner_bounds(n_experts, size)
    counts = [stop - start for start, stop in pairwise(bounds)]
    assert (bounds[0], bounds[-1]) == (0, n_experts)
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("n_experts", "size", "top_k"), [(7, 3, 3), (7, 4, 2), (2, 3, 1), (5, 1, 2), (12, 4, 6)])
def test_rows_are_the_pairs_of_token_and_rank(n_experts: int, size: int, top_k: int) -> None:
    expert_TK = random_choices(11, n_experts, top_k)
    plan = plan_for(expert_TK, n_experts, size)
    bounds = owner_bounds(n_experts, size)
    expected_tokens, expected_routes = [], []
    for rank in range(size):
        for token, experts in enumerate(expert_TK.tolist()):
            local = [expert - bounds[rank] for expert in experts if bounds[rank] <= expert < bounds[rank + 1]]
            expected_tokens += [token] * bool(local)
            expected_routes += [(token, expert, number == 0) for number, expert in enumerate(local)]
    found = zip((plan.order_Q // top_k).tolist(), (plan.code_Q // 2).tolist(), (plan.code_Q % 2).tolist(), strict=True)
    assert plan.token_R.tolist() == expected_tokens
    assert [(token, expert, bool(first)) for token, expert, first in found] == expected_routes


@pytest.mark.parametrize(("n_experts", "size", "top_k"), [(7, 3, 3), (9, 4, 2), (2, 3, 1)])
def test_answers_add_up_at_their_token(n_experts: int, size: int, top_k: int) -> None:
    plan = plan_for(random_choices(11, n_experts, top_k), n_experts, size)
    rows_RD = torch.randn(len(plan.token_R) + 1, 3, dtype=torch.float64)
    rows_RD[-1] = 0
    expected_TD = torch.zeros(11, 3, dtype=torch.float64).index_add_(0, plan.token_R, rows_RD[:-1])
    torch.testing.assert_close(sum_answers(rows_RD, plan.slot_JT), expected_TD, rtol=1e-15, atol=1e-15)
    assert plan.slot_JT.shape[0] <= min(top_k, size)


def test_no_tokens() -> None:
    plan = plan_for(torch.zeros(0, 3, dtype=torch.int64), 7, 3)
    assert plan.sent_rows == plan.sent_routes == [0, 0, 0]
    assert sum_answers(torch.zeros(1, 4), plan.slot_JT).shape == (0, 4)


@pytest.mark.parametrize(("size", "top_k"), [(2, 12), (4, 12), (8, 16)])
def test_copies_under_uniform_routing(size: int, top_k: int) -> None:
    """A token reaches m (1 - (1 - 1/m)^K) of m ranks, a little more when its K experts are all different."""
    n_tokens, n_experts = 4000, 1200
    plan = plan_for(random_choices(n_tokens, n_experts, top_k), n_experts, size)
    assert sum(plan.sent_rows) / n_tokens == pytest.approx(size * (1 - (1 - 1 / size) ** top_k), rel=0.01)
