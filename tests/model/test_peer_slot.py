"""PEER against its algorithm (arXiv 2407.04153), its limiting cases, and the costs of its tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import relative
from torch import Tensor

from model.initialise import Normal, draw
from model.peer import Peer
from model.product_key_config import PeerConfig
from model.visit import Visit

D = 11


def _layer(seed: int = 1, **fields: Any) -> Peer:
    """A float64 layer with all parameters drawn, norms included."""
    layer = Peer(D, PeerConfig(**{"n_keys": 4, "heads": 3, "top_k": 5, "d_key": 6, **fields})).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(draw(Normal(0.7), name, tuple(parameter.shape), seed))
    return layer


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    x, n = torch.randn(2, 2, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(), n.requires_grad_()


def _algorithm(layer: Peer, x_BTD: Tensor, n_BTD: Tensor) -> Tensor:
    """Token by token, head by head, every one of the N experts scored."""
    config, c = layer.config, layer.config.d_key // 2
    act, rows = {"relu": torch.relu, "gelu": F.gelu}[config.activation], []
    for x, n in zip(x_BTD.flatten(0, 1), n_BTD.flatten(0, 1), strict=True):
        y = torch.zeros(D, dtype=torch.float64)
        for head, query in enumerate((layer.queries.linear.weight @ n).view(config.heads, -1)):
            if config.query_norm == "layer":
                query = F.layer_norm(query, (config.d_key,), layer.queries.norm.weight, layer.queries.norm.bias)
            own = slice(head * config.n_keys, (head + 1) * config.n_keys) if config.keys_per_head else slice(None)
            score_N = ((layer.keys.first[own] @ query[:c])[:, None] + layer.keys.second[own] @ query[c:]).flatten()
            score, expert = score_N.topk(config.top_k)
            gates = score.softmax(0) if config.gate == "softmax" else score.sigmoid()
            for gate, i in zip(gates, expert.tolist(), strict=True):
                hidden = act(layer.glu[i] @ x) * (layer.down[i] @ x) if config.glu else act(layer.down[i] @ x)
                y = y + gate * hidden * layer.up[i]
        rows.append(y)
    return torch.stack(rows).view_as(x_BTD)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("activation", "query_norm", "glu"), [("relu", "layer", False), ("gelu", "none", False), ("gelu", "layer", True)])
@pytest.mark.parametrize("keys_per_head", [True, False])
def test_peer_is_its_algorithm(gate: str, activation: str, query_norm: str, glu: bool, keys_per_head: bool) -> None:
    layer = _layer(gate=gate, activation=activation, query_norm=query_norm, glu=glu, keys_per_head=keys_per_head)
    x, n = _inputs()
    actual, expected = layer(x, n, Visit())[0], _algorithm(layer, x, n)
    assert relative(actual, expected) <= 1e-12
    inputs, d_y = [x, n, *layer.parameters()], torch.randn_like(actual)
    for ours, theirs in zip(torch.autograd.grad(actual, inputs, d_y), torch.autograd.grad(expected, inputs, d_y), strict=True):
        assert relative(ours, theirs) <= 1e-11


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_all_experts_with_equal_gates_are_a_dense_layer(activation: str) -> None:
    """Sub-keys of zero make all scores equal, so a head's gates are 1/N each."""
    layer, (x, n) = _layer(top_k=16, heads=2, activation=activation), _inputs()
    with torch.no_grad():
        layer.keys.first.zero_()
        layer.keys.second.zero_()
    act = {"relu": torch.relu, "gelu": F.gelu}[activation]
    dense = 2 / 16 * act(x @ layer.down.T) @ layer.up
    record: dict[str, Any] = {}
    assert relative(layer(x, n, Visit(record=record))[0], dense) <= 1e-12
    assert torch.equal(record["feed_forward"].sort(-1).values, torch.arange(16).expand(6, 2, 16))


def test_one_expert_a_head_is_a_layer_of_chosen_neurons() -> None:
    """k = 1 makes every gate 1: h hidden neurons, chosen by the token; queries and sub-keys learn nothing from it."""
    layer, (x, n) = _layer(top_k=1), _inputs()
    record: dict[str, Any] = {}
    y = layer(x, n, Visit(record=record))[0]
    chosen_TH = record["feed_forward"].squeeze(-1)
    assert (record["gates"]["feed_forward"] == 1).all()
    rows = [F.gelu(token @ layer.down[chosen].T) @ layer.up[chosen] for token, chosen in zip(x.flatten(0, 1), chosen_TH, strict=True)]
    assert relative(y, torch.stack(rows).view_as(x)) <= 1e-12
    y.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in (layer.queries.linear.weight, layer.keys.first, layer.keys.second))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_gradients_by_differences(gate: str) -> None:
    """Through data, query, sub-keys and both tables; the choices are held fast, as they are where the function is smooth."""
    layer, (x, n) = _layer(gate=gate, n_keys=3, heads=2, top_k=3, d_key=4), _inputs()
    record: dict[str, Any] = {}
    layer(x, n, Visit(record=record))
    names = [name for name, _ in layer.named_parameters()]

    def function(x_BTD: Tensor, n_BTD: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x_BTD, n_BTD, Visit(record=record)))[0]

    assert torch.autograd.gradcheck(function, (x, n, *layer.parameters()))


def test_a_token_reads_itself_alone() -> None:
    """Layer norm of a query, unlike batch norm, carries nothing between tokens."""
    layer, (x, n) = _layer(), _inputs()
    alone = layer(x[1:, 2:], n[1:, 2:], Visit())[0]
    assert relative(alone, layer(x, n, Visit())[0][1:, 2:]) <= 1e-14


@pytest.mark.parametrize(("d_key", "mega_flops"), [(128, [2.10, 2.10, 0.52, 4.72]), (512, [8.39, 8.39, 0.52, 17.30])])
def test_cost_of_a_million_experts(d_key: int, mega_flops: list[float]) -> None:
    """d 1024, h 8, k 16, N = 1024^2: FLOPs a token of query, sub-keys and experts, 2 a multiply-accumulate."""
    config = PeerConfig(n_keys=1024, d_key=d_key)
    query, keys, experts = 2 * 1024 * 8 * d_key, 2 * 8 * 1024 * d_key, 4 * 8 * 16 * 1024
    assert [round(flops / 1e6, 2) for flops in (query, keys, experts, query + keys + experts)] == mega_flops
    assert 2 * config.macs(1024, exact=False) == query + keys + experts
    assert config.macs(1024, exact=True) - config.macs(1024, exact=False) == 8 * 16


def test_parameters_of_a_million_experts() -> None:
    """Two tables of 2.147e9 together; a token meets 128 rows of each."""
    config = PeerConfig(n_keys=1024, d_key=128, query_norm="none")
    query, keys = 1024 * 8 * 128, 8 * 1024 * 128
    assert config.parameters(1024) == (2_147_483_648 + query + keys, 2 * 128 * 1024 + query + keys)
    shared = config.model_copy(update={"keys_per_head": False})
    assert config.parameters(1024).stored - shared.parameters(1024).stored == 7 * 1024 * 128
