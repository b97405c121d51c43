"""Where norms stand (arXiv 2405.16039 section 2.4): who reads the raw stream and who the normalised one."""

from __future__ import annotations

import pytest
import torch
from tiny_models import KINDS, relative, tiny_model
from torch import Tensor, nn

from model.block import Block
from model.rotary import positions
from model.visit import Visit

X_BTD = torch.randn(2, 7, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def _run(block: Block, x_BTD: Tensor) -> Tensor:
    rotary = tiny_model().config.attention.rotary
    where = positions(torch.zeros(x_BTD.shape[:2], dtype=torch.int64), 0, None, block.attention.d_head, rotary, torch.float64)
    return block(x_BTD, where, Visit())[0]


@pytest.mark.parametrize("kind", ["peri", "output_gate", "gated_expert"])
def test_a_peri_layer_is_homogeneous(kind: str) -> None:
    """f(c x) = c f(x): exact without eps, in float32 with eps 1e-5 within 1e-5 for c = 3 and unit variance."""
    block: Block = tiny_model(**KINDS[kind]).layers[0]
    assert relative(_run(block.float(), 3 * X_BTD.float()), 3 * _run(block.float(), X_BTD.float())) <= 1e-5
    block.double()
    for norm in (block.attention_norm, block.feed_forward_norm):
        norm.eps = 0.0
    for c in (1e-3, 3.0, 1e4):
        assert relative(_run(block, c * X_BTD), c * _run(block, X_BTD)) <= 1e-12


def test_a_pre_layer_is_not_homogeneous() -> None:
    block: Block = tiny_model(norm="pre").layers[0]
    assert relative(_run(block, 3 * X_BTD), 3 * _run(block, X_BTD)) > 1e-2


class Spy(nn.Module):
    """Stands in a slot and notes what it was given; its answer is a fixed multiple of the data it reads."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.data, self.routed = factor, torch.empty(0), torch.empty(0)

    def forward(self, data: Tensor, routed: Tensor, *rest: object) -> tuple[Tensor, dict[str, Tensor]]:
        self.data, self.routed = data, routed
        return self.factor * data, {}


@pytest.mark.parametrize("norm", ["peri", "pre", "post"])
def test_what_each_part_reads(norm: str) -> None:
    block: Block = tiny_model(norm=norm).layers[0]
    first, second = block.attention_norm, block.feed_forward_norm
    where = positions(torch.zeros(2, 7, dtype=torch.int64), 0, None, 13, tiny_model().config.attention.rotary, torch.float64)
    block.attention, block.feed_forward = Spy(2.0), Spy(0.5)
    y, _ = block(X_BTD, where, Visit())
    x = X_BTD
    data = first(x) if norm == "pre" else x
    assert torch.equal(block.attention.data, data)
    assert torch.equal(block.attention.routed, x if norm == "post" else first(x))
    x = x + 2.0 * data
    x = first(x) if norm == "post" else x
    data = second(x) if norm == "pre" else x
    assert torch.equal(block.feed_forward.data, data)
    assert torch.equal(block.feed_forward.routed, x if norm == "post" else second(x))
    x = x + 0.5 * data
    assert torch.equal(y, second(x) if norm == "post" else x)
