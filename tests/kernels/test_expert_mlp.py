"""expert_mlp against its reference: forward, every gradient, recomputation, repeatability, bfloat16. CPU only."""

from __future__ import annotations

import pytest
import torch
from drawn_routes import (
    TOLERANCES,
    assert_equal_to_reference,
    draw,
    dtypes,
    few_examples,
    loads,
    normal,
    relative_error,
    seeds,
    with_gradients,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from kernels import grouped_matmul, routes, spans
from kernels.expert_mlp import expert_mlp, expert_mlp_reference


def leaves_of(seed, n_rows, n_routes, n_experts, d_model, d_expert, dtype):
    weight_dtype = torch.promote_types(dtype, torch.float32)
    return [
        normal(seed, n_rows, d_model, dtype=dtype),
        torch.rand(n_routes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(weight_dtype),
        normal(seed + 1, n_experts, d_model, d_expert, dtype=dtype) / d_model**0.5,
        normal(seed + 2, n_experts, d_expert, d_model, dtype=dtype) / d_expert**0.5,
    ]


def bound(operation, row_Q, expert_Q, **options):
    """`operation` as a function of its differentiable arguments."""
    return lambda x, weight, up, down: operation(x, row_Q, expert_Q, weight, up, down, **options)


@few_examples
@given(
    seed=seeds,
    load=loads,
    dtype=dtypes,
    n_rows=st.integers(0, 40),
    n_routes=st.integers(0, 200),
    n_experts=st.integers(1, 9),
    d_model=st.sampled_from([1, 16, 82, 412]),
    d_expert=st.sampled_from([1, 16, 48]),
    recompute=st.booleans(),
)
def test_equals_reference(seed, load, dtype, n_rows, n_routes, n_experts, d_model, d_expert, recompute):
    row_Q, expert_Q = draw(seed, load, n_routes, n_experts, n_rows)
    leaves = leaves_of(seed, n_rows, len(row_Q), n_experts, d_model, d_expert, dtype)
    fast = bound(expert_mlp, row_Q, expert_Q, recompute=recompute)
    assert_equal_to_reference(fast, bound(expert_mlp_reference, row_Q, expert_Q), leaves, dtype)


@pytest.mark.parametrize("top_k", [1, 5])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_top_k_of_one_and_of_all(top_k, dtype, monkeypatch):
    monkeypatch.setattr(routes, "ROUTES_A_CHUNK", 8)
    n_rows, n_experts = 30, 5
    expert_Q = torch.rand(n_rows, n_experts, generator=torch.Generator().manual_seed(3)).topk(top_k).indices.flatten()
    row_Q = torch.arange(n_rows).repeat_interleave(top_k)
    leaves = leaves_of(4, n_rows, len(row_Q), n_experts, 82, 16, dtype)
    assert_equal_to_reference(bound(expert_mlp, row_Q, expert_Q), bound(expert_mlp_reference, row_Q, expert_Q), leaves, dtype)


def test_chunks_do_not_change_bits(monkeypatch):
    row_Q, expert_Q = draw(1, "even", 500, 13, 60)
    leaves = leaves_of(2, 60, 500, 13, 16, 8, torch.float32)
    whole = with_gradients(bound(expert_mlp, row_Q, expert_Q), leaves)
    monkeypatch.setattr(routes, "ROUTES_A_CHUNK", 1)
    single = with_gradients(bound(expert_mlp, row_Q, expert_Q), leaves)
    assert all(torch.equal(a, b) for a, b in zip(whole, single, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_repeats_and_recomputes_bit_for_bit(dtype):
    row_Q, expert_Q = draw(5, "even", 3000, 31, 250)
    leaves = leaves_of(6, 250, 3000, 31, 82, 16, dtype)
    first = with_gradients(bound(expert_mlp, row_Q, expert_Q), leaves)
    for again in (
        bound(expert_mlp, row_Q, expert_Q),
        bound(expert_mlp, row_Q, expert_Q, recompute=True),
        lambda *args: checkpoint(bound(expert_mlp, row_Q, expert_Q), *args, use_reentrant=False),
    ):
        assert all(torch.equal(a, b) for a, b in zip(first, with_gradients(again, leaves), strict=True))


def test_non_contiguous_inputs():
    row_Q, expert_Q = draw(7, "even", 90, 4, 20)
    x, weight, up, down = leaves_of(8, 20, 90, 4, 12, 6, torch.float64)

    def strided(operation):
        def call(x_DS, weight_Q2, up_FDE, down_DFE):
            x_SD, weight_Q = x_DS.t(), weight_Q2[:, 0]
            y_SD = operation(x_SD, row_Q, expert_Q, weight_Q, up_FDE.permute(2, 1, 0), down_DFE.permute(2, 1, 0))
            return y_SD[:, ::2].t()

        return call

    leaves = [x.t().contiguous(), torch.stack([weight, weight], 1), up.permute(2, 1, 0).contiguous(), down.permute(2, 1, 0).contiguous()]
    assert_equal_to_reference(strided(expert_mlp), strided(expert_mlp_reference), leaves, torch.float64)


def test_bank_visited_twice_with_kept_graph():
    row_Q, expert_Q = draw(9, "even", 120, 6, 25)
    leaves = leaves_of(10, 25, 120, 6, 16, 8, torch.float64)

    def twice(operation):
        once = bound(operation, row_Q, expert_Q)
        return lambda x, weight, up, down: once(once(x, weight, up, down), weight, up, down)

    assert_equal_to_reference(twice(expert_mlp), twice(expert_mlp_reference), leaves, torch.float64)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss = twice(expert_mlp)(*leaves).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True))


def test_gradcheck():
    row_Q, expert_Q = draw(11, "even", 14, 3, 5)
    leaves = [leaf.requires_grad_() for leaf in leaves_of(12, 5, 14, 3, 4, 3, torch.float64)]
    assert torch.autograd.gradcheck(bound(expert_mlp, row_Q, expert_Q), leaves)


@pytest.mark.parametrize("wanted", range(4))
def test_each_gradient_alone(wanted):
    row_Q, expert_Q = draw(13, "even", 100, 5, 20)
    leaves = leaves_of(14, 20, 100, 5, 16, 8, torch.float64)
    expected = with_gradients(bound(expert_mlp, row_Q, expert_Q), leaves)[1 + wanted]
    leaves[wanted].requires_grad_()
    y = bound(expert_mlp, row_Q, expert_Q)(*leaves)
    y.backward(normal(99, *y.shape, dtype=y.dtype))
    assert torch.equal(leaves[wanted].grad, expected)


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_gradients_over_many_micro_batches(native, monkeypatch):
    """Gradients accumulated in float32 over 64 micro-batches stay within 5e-3 of float64, same routes and rounded inputs."""
    monkeypatch.setattr(grouped_matmul, "_cpu_multiplies_bfloat16", lambda: native)
    totals = None
    for step in range(64):
        row_Q, expert_Q = draw(step, "even", 120, 5, 20)
        leaves = leaves_of(20, 20, 120, 5, 64, 32, torch.bfloat16)
        leaves[0] = normal(1000 + step, 20, 64, dtype=torch.bfloat16)
        found = with_gradients(bound(expert_mlp, row_Q, expert_Q), leaves)[3:]
        expected = with_gradients(bound(expert_mlp_reference, row_Q, expert_Q), [leaf.double() for leaf in leaves])[3:]
        pair = [torch.stack([a.double(), b]) for a, b in zip(found, expected, strict=True)]
        totals = pair if totals is None else [t + p for t, p in zip(totals, pair, strict=True)]
    for found, expected in totals:
        assert (found - expected).norm() / expected.norm() <= 5e-3
        assert relative_error(found, expected) <= 5e-3


def test_bfloat16_sums_are_kept_in_float32(monkeypatch):
    """A thousand ones, added one at a time: a sum kept in bfloat16 would stop at 256."""
    monkeypatch.setattr(routes, "ROUTES_A_CHUNK", 1)
    ones = torch.ones(1000, 1, 1, dtype=torch.bfloat16)
    x_SD = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    y_SD = expert_mlp(x_SD, torch.zeros(1000, dtype=torch.int64), torch.arange(1000), torch.ones(1000), ones, ones)
    y_SD.backward(torch.ones_like(y_SD))
    assert y_SD.item() == 1000 and x_SD.grad.item() == 1000


def test_both_ways_are_spans():
    class Recorder:
        def __init__(self):
            self.heard = []

        def enter(self, name):
            self.heard.append(f"+{name}")

        def leave(self, name):
            self.heard.append(f"-{name}")

    recorder = Recorder()
    row_Q, expert_Q = draw(15, "even", 10, 2, 4)
    spans.install(recorder)
    try:
        with_gradients(bound(expert_mlp, row_Q, expert_Q), leaves_of(16, 4, 10, 2, 4, 3, torch.float32))
    finally:
        spans.uninstall()
    assert recorder.heard == ["+experts", "-experts"] * 2
