"""What `bench experts` claims about its contestants, without timing anything. CPU only."""

from __future__ import annotations

import importlib.util
from itertools import product

import pytest
import torch

from benchmarks.expert_layers import Setting, build_layers
from benchmarks.experts import copies_a_route
from distributed.topology import Topology
from model.config import SigmaMoEConfig


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
