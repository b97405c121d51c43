"""What `bench experts` claims about its contestants, without timing anything. CPU only."""

from __future__ import annotations

import importlib.util
from itertools import product

import pytest
import torch

from benchmarks.expert_layers import Setting, build_layers
from benchmarks.experts import copies_a_route
from benchmarks.experts_crossing import Point, crossing
from distributed.topology import Topology
from model.moe_config import SigmaMoEConfig


@pytest.mark.parametrize("ranks, top_k", [(1, 3), (2, 1), (2, 4), (3, 2)])
def test_theory_counts_distinct_ranks(ranks, top_k):
    reached = [len(set(owners)) for owners in product(range(ranks), repeat=top_k)]
    assert copies_a_route(ranks, top_k) == pytest.approx(sum(reached) / len(reached) / top_k)


def test_dense_layer_has_the_work_of_the_chosen_experts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # one process: no group for DeepSpeed's layers
    alone = Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)
    setting = Setting(tokens=6, dtype=torch.float32, d_model=12, experts=SigmaMoEConfig(n_experts=5, top_k=3))
    layers = build_layers(setting, alone)
    assert set(layers) == {"mootron", "dense"}
    sizes = {name: sum(p.numel() for p in layer.module.parameters()) for name, layer in layers.items()}
    router = setting.experts.n_experts * setting.d_model
    assert sizes["dense"] * setting.experts.n_experts == (sizes["mootron"] - router) * setting.experts.top_k
    x_1TD = torch.randn(1, 6, 12)
    assert all(layer.call(x_1TD).shape == x_1TD.shape for layer in layers.values())


def test_the_crossing_lies_between_the_points_that_enclose_it():
    def points(*tokens_seconds: float) -> list[Point]:
        return [Point(10 ** (1 + n), {"tokens": seconds, "weights": 1.0}, {}) for n, seconds in enumerate(tokens_seconds)]

    assert crossing(points(0.25, 0.5, 2.0)) == pytest.approx(100 * 10**0.5)
    assert crossing(points(0.1, 0.2, 0.9)) is None
    assert crossing(points(1.5, 2.0)) is None
