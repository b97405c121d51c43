"""Which module fills a feed-forward or halting slot: by the `kind` of its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from model.act import Act
from model.config import FeedForward, Halting
from model.exchange import Exchange
from model.feed_forward import DenseFeedForward, RoutedFeedForward
from model.halting import NoHalting
from model.halting_config import ActConfig, StickBreakingConfig
from model.peer import Peer
from model.pkm import PKM, PKMHalves
from model.stick_breaking import StickBreaking
from model.table_exchange import TableExchange
from model.topk import TopK


def _alone(module: Callable[[int, Any], nn.Module]) -> Callable[[int, Any, Exchange, bool], nn.Module]:
    """A module whose weights are all here and that has its own way to save memory."""
    return lambda d_model, config, exchange, recompute_experts: module(d_model, config)


FEED_FORWARDS: dict[str, Callable[[int, Any, Exchange, bool], nn.Module]] = {
    "sigma_moe": RoutedFeedForward,
    "switch": RoutedFeedForward,
    "s_base": RoutedFeedForward,
    "dense": _alone(DenseFeedForward),
    "topk": _alone(TopK),
}

TABLES: dict[str, Callable[[int, Any, TableExchange], nn.Module]] = {"pkm": PKM, "pkm_halves": PKMHalves, "peer": Peer}
"""Slots that read a few rows of a large table, whose columns may live on several ranks."""


def build_feed_forward(d_model: int, config: FeedForward, exchange: Exchange, recompute_experts: bool, tables: TableExchange) -> nn.Module:
    """The feed-forward that `config` names. Its forward takes (data, normalised data, visit) and gives (y, statistics)."""
    if config.kind in TABLES:
        return TABLES[config.kind](d_model, config, tables)
    return FEED_FORWARDS[config.kind](d_model, config, exchange, recompute_experts)


def build_halting(config: Halting, d_model: int) -> NoHalting | StickBreaking | Act:
    """The halting that `config` names."""
    if isinstance(config, StickBreakingConfig):
        return StickBreaking(config, d_model)
    return Act(config, d_model) if isinstance(config, ActConfig) else NoHalting()
