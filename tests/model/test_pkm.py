"""Product-key memories against their equations (arXiv 1907.05242, 2310.10837), and the sizes of the published models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny_models import relative, tiny_config
from torch import Tensor, nn

from model.dense_config import DenseFeedForwardConfig
from model.initialise import Normal, draw
from model.moeut import MoEUT
from model.pkm import PKM, PKMHalves
from model.product_key_config import PKMConfig, PKMHalvesConfig
from model.visit import Visit

D = 13


def _drawn(layer: nn.Module) -> Any:
    layer = layer.double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(draw(Normal(0.7), name, tuple(parameter.shape), 1))
    return layer


def _input(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def _same(layer: nn.Module, n: Tensor, expected: Tensor) -> None:
    """Forward, and backward into the input and every parameter."""
    actual = layer(n, n, Visit())[0]
    assert relative(actual, expected) <= 1e-12
    inputs, d_y = [n, *layer.parameters()], torch.randn_like(actual)
    for ours, theirs in zip(torch.autograd.grad(actual, inputs, d_y), torch.autograd.grad(expected, inputs, d_y), strict=True):
        assert relative(ours, theirs) <= 1e-11


def _slot_scores(layer: PKM | PKMHalves, head: int, query: Tensor) -> Tensor:
    own, width = slice(head * layer.keys.n_keys, (head + 1) * layer.keys.n_keys), layer.keys.widths[0]
    return ((layer.keys.first[own] @ query[:width])[:, None] + layer.keys.second[own] @ query[width:]).flatten()


@pytest.mark.parametrize("query_norm", ["none", "layer"])
def test_pkm_is_a_softmax_over_each_heads_winners(query_norm: str) -> None:
    layer, n = _drawn(PKM(D, PKMConfig(n_keys=5, heads=3, top_k=4, d_key=6, query_norm=query_norm))), _input()
    rows = []
    for token in n.flatten(0, 1):
        y = torch.zeros(D, dtype=torch.float64)
        for head, query in enumerate((layer.queries.linear.weight @ token + layer.queries.linear.bias).view(3, 6)):
            if query_norm == "layer":
                query = F.layer_norm(query, (6,), layer.queries.norm.weight, layer.queries.norm.bias)
            score, slot = _slot_scores(layer, head, query).topk(4)
            y = y + score.softmax(0) @ layer.values[slot]
        rows.append(y)
    _same(layer, n, torch.stack(rows).view_as(n))


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_sparse_halves_activate_all_heads_together(activation: str) -> None:
    layer, n = _drawn(PKMHalves(D, PKMHalvesConfig(n_keys=5, heads=3, top_k=4, activation=activation))), _input()
    rows = []
    for token in n.flatten(0, 1):
        best = [_slot_scores(layer, head, token).topk(4) for head in range(3)]
        score, slot = torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])
        rows.append((torch.relu(score) if activation == "relu" else score.softmax(0)) @ layer.values[slot])
    _same(layer, n, torch.stack(rows).view_as(n))


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_dense_halves_sum_heads_before_they_activate(activation: str) -> None:
    layer, n = _drawn(PKMHalves(D, PKMHalvesConfig(n_keys=5, heads=3, top_k=5, activation=activation))), _input()
    rows = []
    for token in n.flatten(0, 1):
        score = sum(_slot_scores(layer, head, token) for head in range(3))
        rows.append((torch.relu(score) if activation == "relu" else score.softmax(0)) @ layer.values)
    _same(layer, n, torch.stack(rows).view_as(n))


def test_sparse_equals_dense_for_one_head_whose_winners_are_all_that_is_positive() -> None:
    """A row and a column of strongly negative sub-keys leave 9 of 16 slots that can be positive; 3 are picked of each half."""
    sparse = _drawn(PKMHalves(D, PKMHalvesConfig(n_keys=10, heads=1, top_k=9)))
    dense = PKMHalves(D, PKMHalvesConfig(n_keys=10, heads=1, top_k=10)).double()
    n = _input().detach().abs().requires_grad_()
    with torch.no_grad():
        for half in (sparse.keys.first, sparse.keys.second):
            half.abs_()
            half[3:] = -10 * half[3:]
    dense.load_state_dict(sparse.state_dict())
    record: dict[str, Any] = {}
    y = sparse(n, n, Visit(record=record))[0]
    assert int((record["gates"]["feed_forward"] > 0).sum(-1).min()) == 9
    assert relative(y, dense(n, n, Visit())[0]) <= 1e-12
    d_y = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(m(n, n, Visit())[0], [n, *m.parameters()], d_y) for m in (sparse, dense))
    assert all(relative(a, b) <= 1e-11 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("d_model", "n_keys", "d_ff", "values"), [(412, 62, 2053, 3844), (1024, 89, 4110, 7921)])
def test_sizes_matched_to_the_dense_models(d_model: int, n_keys: int, d_ff: int, values: int) -> None:
    """WikiText-103 small and big: parameters as the dense layer's, within 1%, without query layer and biases."""
    config = PKMHalvesConfig(n_keys=n_keys)
    assert config.n_slots == values and config.dense
    count = config.parameters(d_model)
    assert count.stored == count.active == values * d_model + 4 * n_keys * d_model
    assert count.stored == pytest.approx(DenseFeedForwardConfig(d_ff=d_ff).parameters(d_model).stored, rel=0.01)
    assert config.macs(d_model, exact=True) == n_keys * d_model + values * d_model


def test_costs_of_the_sparse_forms() -> None:
    """The notebook of 1907.05242: d_k 128, h 4, k 32, n 512; here with d 1024."""
    config = PKMConfig(n_keys=512, d_key=128)
    always = 1025 * 4 * 128 + 4 * 512 * 128
    assert config.parameters(1024) == (always + 512**2 * 1024, always + 4 * 32 * 1024)
    assert config.macs(1024, exact=True) == 1024 * 4 * 128 + 4 * 512 * 128 + 4 * 32 * 1024
    halves = PKMHalvesConfig(n_keys=512)
    assert halves.macs(1024, exact=True) == 4 * 512 * 1024 + 4 * 128 * 1024
    assert halves.parameters(1024).active == 4 * 512 * 1024 + 4 * 128 * 1024


@pytest.mark.parametrize(("value_fan_in", "fan_in"), [("d_model", 36), ("slots", 400), ("reads", 24)])
def test_starts_of_the_halves(value_fan_in: str, fan_in: int) -> None:
    """Standard deviations sqrt(2 / (L d)) for keys; for values L times the fan-in that is asked for. L = 6 visits."""
    slot = {"kind": "pkm_halves", "n_keys": 20, "heads": 3, "top_k": 8, "value_fan_in": value_fan_in}
    values = MoEUT(tiny_config(feed_forward=slot)).init_parameters(2).state_dict()
    assert values["layers.0.feed_forward.values"].std().item() == pytest.approx((2 / (6 * fan_in)) ** 0.5, rel=0.05)
    for half in ("first", "second"):
        assert values[f"layers.1.feed_forward.keys.{half}"].std().item() == pytest.approx((2 / (6 * 36)) ** 0.5, rel=0.1)


def test_more_picks_than_slots_are_refused() -> None:
    with pytest.raises(ValidationError, match="top_k is 10 but 3 sub-keys a half make 9 slots; choose top_k <= 9"):
        PKMConfig(n_keys=3, top_k=10, d_key=4)
    with pytest.raises(ValidationError, match="d_key"):
        PKMConfig(n_keys=3, top_k=2, d_key=5)
