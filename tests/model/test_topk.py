"""Top-K activation against its equation (arXiv 2310.10837 eq. 6-7)."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tiny_models import relative

from model.dense_config import DenseFeedForwardConfig, TopKConfig
from model.feed_forward import DenseFeedForward
from model.topk import TopK
from model.visit import Visit


def test_only_the_largest_units_speak() -> None:
    layer = TopK(9, TopKConfig(d_ff=20, top_k=4)).double()
    x = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    rows = []
    for token in x.flatten(0, 1):
        hidden = torch.relu(layer.up.weight @ token + layer.up.bias)
        kept = hidden.detach().argsort(descending=True)[:4]
        rows.append(layer.down.weight[:, kept] @ hidden[kept] + layer.down.bias)
    expected = torch.stack(rows).view_as(x)
    record: dict[str, torch.Tensor] = {}
    y, statistics = layer(x, torch.zeros_like(x), Visit(record=record))
    assert statistics == {} and record["feed_forward"].shape == (10, 4)
    assert relative(y, expected) <= 1e-12
    inputs, d_y = [x, *layer.parameters()], torch.randn_like(y)
    for ours, theirs in zip(torch.autograd.grad(y, inputs, d_y), torch.autograd.grad(expected, inputs, d_y), strict=True):
        assert relative(ours, theirs) <= 1e-12


def test_all_units_are_the_dense_layer() -> None:
    layer, dense = TopK(9, TopKConfig(d_ff=20, top_k=20)).double(), DenseFeedForward(9, DenseFeedForwardConfig(d_ff=20)).double()
    dense.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 9, dtype=torch.float64)
    assert torch.equal(layer(x, x, Visit())[0], dense(x, x, Visit())[0])


def test_costs_are_the_dense_layers_but_for_the_rows_met() -> None:
    """WikiText-103 small: d 412, 2053 units, 128 kept."""
    config, dense = TopKConfig(d_ff=2053, top_k=128), DenseFeedForwardConfig(d_ff=2053)
    assert config.parameters(412).stored == dense.parameters(412).stored == 1_694_137
    assert config.parameters(412).stored - config.parameters(412).active == (2053 - 128) * 412
    assert config.macs(412, exact=True) == dense.macs(412, exact=True)


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValidationError, match="top_k is 9 but there are 8 hidden units; choose top_k <= 8"):
        TopKConfig(d_ff=8, top_k=9)
