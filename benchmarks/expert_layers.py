"""The layers that `bench experts` sets side by side, all with the same router and the same work.

Shape suffixes: T tokens of a rank, D model width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distributed.exchange import TokenExchange
from distributed.topology import Topology
from model.exchange import LocalExchange
from model.feed_forward import RoutedFeedForward
from model.moe_config import SigmaMoEConfig
from model.visit import Visit


@dataclass(frozen=True)
class Setting:
    """One row of the comparison: `experts.n_experts` experts of which a token takes `experts.top_k`."""

    tokens: int
    dtype: torch.dtype
    d_model: int
    experts: SigmaMoEConfig


@dataclass(frozen=True)
class Layer:
    """A contestant: `call` gives y [1, T, D] of x [1, T, D]."""

    module: nn.Module
    call: Callable[[Tensor], Tensor]


def build_layers(setting: Setting, topology: Topology) -> dict[str, Layer]:
    """Ours, the dense layer, and DeepSpeed's where it is installed, with equal router weights on every rank."""
    ours = _ours(setting, topology, parts=1)
    layers = {"mootron": ours, "dense": _dense(setting, topology)}
    if topology.world > 1:
        layers["mootron overlapped"] = _ours(setting, topology, parts=2)
    if importlib.util.find_spec("deepspeed") is not None:
        router = ours.module.get_parameter("router.weight")
        layers["deepspeed drop"] = _deepspeed(setting, topology, router, drop_tokens=True)
        layers["deepspeed dropless"] = _deepspeed(setting, topology, router, drop_tokens=False)
    return layers


def _ours(setting: Setting, topology: Topology, parts: int) -> Layer:
    exchange = TokenExchange(topology, parts) if topology.world > 1 else LocalExchange()
    module = RoutedFeedForward(setting.d_model, setting.experts, exchange)
    generator = torch.Generator().manual_seed(1)  # the same router everywhere; what the banks hold changes no time
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=setting.d_model**-0.5, generator=generator)
    module.to(topology.device, setting.dtype)
    return Layer(module, lambda x_1TD: module(x_1TD, x_1TD, Visit())[0])


def _dense(setting: Setting, topology: Topology) -> Layer:
    """The multiply-accumulates of top_k experts in two matrices: d -> top_k * d_expert -> d."""
    module = _two_layers(setting.d_model, setting.experts.top_k * setting.experts.d_expert).to(topology.device, setting.dtype)
    return Layer(module, module)


def _deepspeed(setting: Setting, topology: Topology, router: Tensor, drop_tokens: bool) -> Layer:
    """DeepSpeed's explicit MoE. Its weights are a softmax renormalised over the chosen; what it chooses is what we choose."""
    from deepspeed.moe.layer import MoE

    experts = setting.experts
    module = MoE(
        hidden_size=setting.d_model,
        expert=_two_layers(setting.d_model, experts.d_expert),
        num_experts=experts.n_experts,
        ep_size=topology.expert_parallel,
        k=experts.top_k,
        capacity_factor=1.0,
        drop_tokens=drop_tokens,
    )
    module.set_deepspeed_parallelism()
    module.to(topology.device, setting.dtype)
    with torch.no_grad():
        module.deepspeed_moe.gate.wg.weight.copy_(router)
    return Layer(module, lambda x_1TD: module(x_1TD)[0])


def _two_layers(d_model: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d_model, width, bias=False), nn.ReLU(), nn.Linear(width, d_model, bias=False))
