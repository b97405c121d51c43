"""One layer: attention, then feed-forward, both residual. Norm placement is all that differs between the variants.

Shape suffixes: B sequences, T tokens, D model width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.spans import span
from model.attention import DenseAttention, GatedAttention, Statistics
from model.attention_config import MomhaConfig, SwitchHeadConfig
from model.config import ModelConfig
from model.depth_config import DepthConfig
from model.depth_switches import DepthSwitches
from model.exchange import Exchange
from model.momha import Momha
from model.norm import LayerNorm
from model.rotary import Positions
from model.router import Router
from model.skipping import Skipping
from model.slots import build_feed_forward
from model.switchhead import SwitchHead
from model.table_exchange import TableExchange
from model.visit import Visit


class Block(nn.Module):
    """x + attention, then x + feed-forward.

    peri: only what feeds a sigmoid or a softmax (queries, keys, routers) reads the normalised stream; values and the
    feed-forward read it raw, so that f(c x) = c f(x) (arXiv 2405.16039, section 2.4). pre: everything reads the
    normalised stream. post: the stream itself is normalised after each addition. The stream is at least float32;
    what is read from it has the weights' type.

    It is distinct layer `layer` of `config`; those of the repeated group have what `config.depth.per_visit` names once a visit.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        exchange: Exchange,
        attention_exchange: Exchange,
        recompute_experts: bool,
        tables: TableExchange,
    ) -> None:
        super().__init__()
        self.norm, self.dropout = config.norm, config.dropout
        self.attention = build_attention(config, attention_exchange)
        self.feed_forward = build_feed_forward(config.d_model, config.feed_forward_of(layer), exchange, recompute_experts, tables)
        depth = config.depth if config.depth.is_repeated(layer) else DepthConfig()
        own_norms = depth.most_repeats if "norm" in depth.per_visit else None
        self.attention_norm = LayerNorm(config.d_model, own_norms)
        self.feed_forward_norm = LayerNorm(config.d_model, own_norms)
        self.depth = DepthSwitches(depth, config.d_model)
        if "router" in depth.per_visit:
            for module in self.modules():
                if isinstance(module, Router):
                    module.own_weights(depth.most_repeats)

    def forward(self, x_BTD: Tensor, where: Positions, visit: Visit) -> tuple[Tensor, Statistics]:
        """The stream after this layer, and the statistics of its routers."""
        x_BTD, data_BTD, n_BTD = self._read(self.depth.enter(x_BTD, visit), None, self.attention_norm, visit)
        source = (data_BTD, n_BTD) if visit.skipping is None else self._source(visit.skipping, visit)
        with span("attention"):
            y_BTD, attention_statistics = self.attention(*source, where, visit, n_BTD)
        x_BTD, data_BTD, n_BTD = self._add_and_read(x_BTD, self.depth.contribution(y_BTD, visit), visit)
        y_BTD, feed_forward_statistics = self.feed_forward(data_BTD, n_BTD, visit)
        x_BTD = self._add(x_BTD, self.depth.contribution(y_BTD, visit), self.feed_forward_norm, visit)
        return x_BTD, attention_statistics | feed_forward_statistics

    def _source(self, skipping: Skipping, visit: Visit) -> tuple[Tensor, Tensor]:
        """What keys and values are made from where tokens halt, for the data path and normalised."""
        _, data_N1D, n_N1D = self._read(self.depth.enter(skipping.source_rows(), visit), None, self.attention_norm, visit)
        return data_N1D, n_N1D

    def _add_and_read(self, x_BTD: Tensor, y_BTD: Tensor, visit: Visit) -> tuple[Tensor, Tensor, Tensor]:
        """Attention's result added to the stream and what the feed-forward reads, in one pass where nothing comes between."""
        if self.norm == "post" or (self.training and self.dropout > 0.0):
            return self._read(self._add(x_BTD, y_BTD, self.attention_norm, visit), None, self.feed_forward_norm, visit)
        return self._read(x_BTD, y_BTD, self.feed_forward_norm, visit)

    def _read(self, x_BTD: Tensor, y_BTD: Tensor | None, norm: LayerNorm, visit: Visit) -> tuple[Tensor, Tensor, Tensor]:
        """The stream with `y_BTD` added, what the data path reads of it, and what queries, keys and routers read."""
        if self.norm == "post":
            data_BTD = x_BTD.to(norm.weight.dtype)
            return x_BTD, data_BTD, data_BTD
        read = norm.read(x_BTD, y_BTD, data=self.norm == "peri", repeat=visit.repeat)
        return read.x, read.n if read.data is None else read.data, read.n

    def _add(self, x_BTD: Tensor, y_BTD: Tensor, norm: LayerNorm, visit: Visit) -> Tensor:
        x_BTD = x_BTD + F.dropout(y_BTD, self.dropout, self.training)
        return norm(x_BTD, visit.repeat) if self.norm == "post" else x_BTD


def build_attention(config: ModelConfig, exchange: Exchange) -> SwitchHead | DenseAttention | Momha:
    """The attention that `config.attention` names."""
    attention = config.attention
    if isinstance(attention, MomhaConfig):
        return Momha(config.d_model, attention)
    if not isinstance(attention, SwitchHeadConfig):
        return DenseAttention(config.d_model, attention.n_heads, attention.d_head)
    if attention.gated:
        return GatedAttention(config.d_model, attention.n_heads, attention.d_head)
    return SwitchHead(config.d_model, attention, exchange)
