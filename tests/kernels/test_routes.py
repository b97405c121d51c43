"""Expert order and its cuts. CPU only."""

from __future__ import annotations

import torch
from drawn_routes import draw, few_examples, loads, seeds
from hypothesis import given
from hypothesis import strategies as st

from kernels import routes
from kernels.routes import cut, sort_routes, sort_routes_reference


@few_examples
@given(seed=seeds, load=loads, n_routes=st.integers(0, 3000), n_experts=st.integers(1, 200))
def test_equals_reference(seed, load, n_routes, n_experts):
    _, expert_Q = draw(seed, load, n_routes, n_experts, 1)
    found, expected = sort_routes(expert_Q, n_experts), sort_routes_reference(expert_Q, n_experts)
    assert torch.equal(found.order_Q, expected.order_Q) and torch.equal(found.ends_E, expected.ends_E)


@few_examples
@given(seed=seeds, load=loads, n_routes=st.integers(0, 3000), n_experts=st.integers(1, 200))
def test_cuts_cover_every_expert_and_route_once(seed, load, n_routes, n_experts):
    _, expert_Q = draw(seed, load, n_routes, n_experts, 1)
    ends_E = sort_routes(expert_Q, n_experts).ends_E
    chunks = cut(ends_E)
    sizes = [size for chunk in chunks for size in chunk.sizes]
    assert torch.equal(torch.tensor(sizes).cumsum(0), ends_E)
    assert [e for chunk in chunks for e in range(n_experts)[chunk.experts]] == list(range(n_experts))
    assert [q for chunk in chunks for q in range(len(expert_Q))[chunk.routes]] == list(range(len(expert_Q)))
    assert all(sum(chunk.sizes[:-1]) < routes.ROUTES_A_CHUNK for chunk in chunks)
