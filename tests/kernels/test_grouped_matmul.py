"""grouped_matmul against its reference, forward and both gradients. CPU only."""

from __future__ import annotations

import pytest
import torch
from drawn_routes import assert_equal_to_reference, draw, dtypes, few_examples, loads, normal, relative_error, seeds, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from kernels import grouped_matmul as module
from kernels.grouped_matmul import grouped_matmul, grouped_matmul_reference
from kernels.routes import sort_routes


@few_examples
@given(
    seed=seeds,
    load=loads,
    dtype=dtypes,
    n_routes=st.integers(0, 100),
    n_experts=st.integers(1, 9),
    d_in=st.sampled_from([1, 82, 412]),
    d_out=st.integers(1, 20),
)
def test_equals_reference(seed, load, dtype, n_routes, n_experts, d_in, d_out):
    _, expert_Q = draw(seed, load, n_routes, n_experts, 1)
    ends_E = sort_routes(expert_Q, n_experts).ends_E
    leaves = [normal(seed, len(expert_Q), d_in, dtype=dtype), normal(seed + 1, n_experts, d_in, d_out, dtype=dtype)]
    assert_equal_to_reference(lambda x, w: grouped_matmul(x, w, ends_E), lambda x, w: grouped_matmul_reference(x, w, ends_E), leaves, dtype)


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_with_and_without_instructions(native, monkeypatch):
    """Both arithmetics round the result once: half a unit in the last place, 2^-8, of each entry."""
    monkeypatch.setattr(module, "_cpu_multiplies_bfloat16", lambda: native)
    _, expert_Q = draw(1, "first experts empty", 100, 6, 1)
    ends_E = sort_routes(expert_Q, 6).ends_E
    leaves = [normal(2, 100, 64, dtype=torch.bfloat16), normal(3, 6, 64, 32, dtype=torch.bfloat16)]
    found = with_gradients(lambda x, w: grouped_matmul(x, w, ends_E), leaves)
    expected = with_gradients(lambda x, w: grouped_matmul_reference(x, w, ends_E), [leaf.double() for leaf in leaves])
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine, theirs) <= 2**-8
