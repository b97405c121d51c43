"""From a recipe to a model on this rank: device type, where experts and tables live, initial weights."""

from __future__ import annotations

from typing import Any

import torch

from distributed.exchange import TokenExchange
from distributed.recipe import Recipe
from distributed.table_exchange import ColumnExchange
from distributed.topology import Topology
from distributed.weight_exchange import WeightExchange
from model.attention_config import SwitchHeadConfig
from model.exchange import Exchange, LocalExchange
from model.moeut import MoEUT


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The parameters' type: `auto` is bf16 where the device computes in it (a CPU emulates it slowly), else fp32."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
    if precision in named:
        return named[precision]
    return torch.bfloat16 if _computes_bf16(device) else torch.float32


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.12
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def build_exchange(recipe: Recipe, topology: Topology) -> Exchange:
    """Where the feed-forward experts live: all here, or spread over the expert-parallel group, and what moves there.

    Raises:
        ValueError: `expert_parallel.move` is still `auto`: `distributed.move.settle_move` decides.
    """
    if topology.expert_parallel == 1:
        return LocalExchange()
    if recipe.expert_parallel.move == "auto":
        raise ValueError("expert_parallel.move is 'auto'; settle it first")
    if recipe.expert_parallel.move == "weights":
        return WeightExchange(topology)
    overlap = recipe.expert_parallel.overlap
    in_two = topology.device.type != "cpu" if overlap is None else overlap
    return TokenExchange(topology, parts=2 if in_two else 1)


def build_model(recipe: Recipe, topology: Topology) -> MoEUT:
    """The recipe's model with its initial weights, which depend on the seed and not on the layout."""
    exchange = build_exchange(recipe, topology)
    partitioned_attention = recipe.expert_parallel.attention and isinstance(recipe.model.attention, SwitchHeadConfig)
    attention_exchange = exchange if partitioned_attention else LocalExchange()
    table_exchange = ColumnExchange(topology.tables, topology.device) if topology.tables.size > 1 else None
    model = MoEUT(recipe.model, exchange, attention_exchange, recipe.train.recompute, table_exchange)
    model.init_parameters(recipe.seed)
    return model.to(device=topology.device, dtype=choose_dtype(recipe.train.precision, topology.device))
