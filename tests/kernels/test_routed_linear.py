"""routed_linear against its reference: forward, every gradient, SwitchHead's two uses. CPU only."""

from __future__ import annotations

import pytest
import torch
from drawn_routes import TOLERANCES, assert_equal_to_reference, draw, dtypes, few_examples, loads, normal, seeds, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from kernels import routes
from kernels.routed_linear import routed_linear, routed_linear_reference


def bound(operation, in_row_Q, out_row_Q, expert_Q, n_out):
    """`operation` as a function of its differentiable arguments."""
    return lambda x, w, weight: operation(x, w, in_row_Q, out_row_Q, expert_Q, weight, n_out)


def leaves_of(seed, n_rows, n_routes, n_experts, d_in, d_out, dtype):
    return [
        normal(seed, n_rows, d_in, dtype=dtype),
        normal(seed + 1, n_experts, d_in, d_out, dtype=dtype),
        normal(seed + 2, n_routes, dtype=torch.promote_types(dtype, torch.float32)),
    ]


@few_examples
@given(
    seed=seeds,
    load=loads,
    dtype=dtypes,
    n_rows=st.integers(0, 40),
    n_out=st.integers(1, 40),
    n_routes=st.integers(0, 200),
    n_experts=st.integers(1, 9),
    d_in=st.sampled_from([1, 16, 82, 412]),
    d_out=st.sampled_from([1, 16, 82]),
)
def test_equals_reference(seed, load, dtype, n_rows, n_out, n_routes, n_experts, d_in, d_out):
    in_row_Q, expert_Q = draw(seed, load, n_routes, n_experts, n_rows)
    out_row_Q, _ = draw(seed + 1, "even", len(in_row_Q), 1, n_out)
    leaves = leaves_of(seed, n_rows, len(in_row_Q), n_experts, d_in, d_out, dtype)
    arguments = in_row_Q, out_row_Q, expert_Q, n_out
    assert_equal_to_reference(bound(routed_linear, *arguments), bound(routed_linear_reference, *arguments), leaves, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("use", ["value", "output"])
def test_switchhead_projections(use, dtype, monkeypatch):
    """Against the equations written out: heads H, experts a head N, chosen K of them."""
    monkeypatch.setattr(routes, "ROUTES_A_CHUNK", 16)
    T, H, N, K, D, C = 11, 3, 4, 2, 20, 6
    chosen_THK = torch.rand(T, H, N, generator=torch.Generator().manual_seed(1)).topk(K).indices
    token_THK = torch.arange(T)[:, None, None].expand(T, H, K)
    head_THK = torch.arange(H)[None, :, None].expand(T, H, K)
    token_Q, place_Q = token_THK.flatten(), (token_THK * H + head_THK).flatten()
    expert_Q = (head_THK * N + chosen_THK).flatten()
    in_row_Q, out_row_Q, n_in, n_out, d_in, d_out = (
        (token_Q, place_Q, T, T * H, D, C) if use == "value" else (place_Q, token_Q, T * H, T, C, D)
    )

    def equations(x, w, weight):
        w_HNIO, weight_THK = w.unflatten(0, (H, N)), weight.unflatten(0, (T, H, K))
        picked_THKIO = w_HNIO[head_THK, chosen_THK]
        if use == "value":
            return torch.einsum("ti,thkio,thk->tho", x, picked_THKIO, weight_THK).flatten(0, 1)
        return torch.einsum("thi,thkio,thk->to", x.unflatten(0, (T, H)), picked_THKIO, weight_THK)

    leaves = leaves_of(2, n_in, T * H * K, H * N, d_in, d_out, dtype)
    assert_equal_to_reference(bound(routed_linear, in_row_Q, out_row_Q, expert_Q, n_out), equations, leaves, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_bit_for_bit(dtype):
    in_row_Q, expert_Q = draw(5, "even", 3000, 12, 250)
    out_row_Q, _ = draw(6, "even", 3000, 1, 100)
    leaves = leaves_of(7, 250, 3000, 12, 82, 41, dtype)
    runs = [with_gradients(bound(routed_linear, in_row_Q, out_row_Q, expert_Q, 100), leaves) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("wanted", range(3))
def test_each_gradient_alone(wanted):
    in_row_Q, expert_Q = draw(8, "even", 60, 4, 20)
    out_row_Q, _ = draw(9, "even", 60, 1, 15)
    leaves = leaves_of(10, 20, 60, 4, 9, 7, torch.float64)
    operation = bound(routed_linear, in_row_Q, out_row_Q, expert_Q, 15)
    expected = with_gradients(operation, leaves)[1 + wanted]
    leaves[wanted].requires_grad_()
    y = operation(*leaves)
    y.backward(normal(99, *y.shape, dtype=y.dtype))
    assert torch.equal(leaves[wanted].grad, expected)


def test_bfloat16_sums_are_kept_in_float32(monkeypatch):
    """A thousand ones, added one at a time: a sum kept in bfloat16 would stop at 256."""
    monkeypatch.setattr(routes, "ROUTES_A_CHUNK", 1)
    row_Q = torch.zeros(1000, dtype=torch.int64)
    x_RD = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    y_OF = routed_linear(x_RD, torch.ones(1000, 1, 1, dtype=torch.bfloat16), row_Q, row_Q, torch.arange(1000), torch.ones(1000), 1)
    y_OF.backward(torch.ones_like(y_OF))
    assert y_OF.item() == 1000 and x_RD.grad.item() == 1000
