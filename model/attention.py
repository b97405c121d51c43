"""Attention with dense projections: what every kind of attention shares, and the two kinds without expert choices.

Shape suffixes: B sequences, T tokens, D model width, H heads, d head width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.initialise import Normal, Rules, TruncatedNormal
from model.rotary import Positions, rotate
from model.visit import Visit

Statistics: TypeAlias = dict[str, Tensor]
"""What the routers of one visit tell the balance regulariser, by router name; empty where there are none."""


class QueryKeyAttention(nn.Module):
    """Dense queries and keys, rotary positions, causal softmax; values and outputs are left to the kind."""

    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, d_head
        self.query = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.key = nn.Linear(d_model, n_heads * d_head, bias=False)

    def attend(self, n_BTD: Tensor, value_BTHd: Tensor, where: Positions, visit: Visit, query_BTD: Tensor | None = None) -> Tensor:
        """softmax(q k / sqrt(d)) v, [B, T, H, d], over the tokens that `where` allows, cached ones included."""
        query, key = self._heads(self.query(n_BTD if query_BTD is None else query_BTD)), self._heads(self.key(n_BTD))
        return attend(query, key, value_BTHd.transpose(1, 2), where, visit)

    def _heads(self, x_BTN: Tensor) -> Tensor:
        return x_BTN.unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2)


def attend(query_BHTd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor, where: Positions, visit: Visit) -> Tensor:
    """softmax(q k / sqrt(d)) v, [B, T, H, d], of queries and keys that are still to be rotated; a batch in rows gives rows.

    Several query heads may share a key head: those of one key head stand side by side.
    """
    if visit.skipping is None:
        query, key, value = rotate(query_BHTd, where), rotate(key_BHTd, where), value_BHTd
    else:
        query, key, value, where = visit.skipping.spread(query_BHTd, key_BHTd, value_BHTd, where)
    if visit.cache is not None:
        key, value = visit.cache.extend(key, value)
    shared = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    # Flash and cuDNN kernels refuse a batch of zero sequences (pytorch issue 133780); plain operators take it.
    with sdpa_kernel(SDPBackend.MATH) if query.numel() == 0 else nullcontext():
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=where.mask, is_causal=where.causal, **shared)
    attended_BTHd = attended.transpose(1, 2)
    return attended_BTHd if visit.skipping is None else visit.skipping.queries.unpad(attended_BTHd).unsqueeze(1)


class DenseAttention(QueryKeyAttention):
    """Multi-head attention without biases: the parameter-matched baseline."""

    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__(d_model, n_heads, d_head)
        self.value = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.output = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(
        self, data_BTD: Tensor, n_BTD: Tensor, where: Positions, visit: Visit, query_BTD: Tensor | None = None
    ) -> tuple[Tensor, Statistics]:
        """Attention of `query_BTD` (None: `n_BTD`) to keys of `n_BTD` and values of `data_BTD`: y [B, T, D], and no statistics."""
        query_BTD = n_BTD if query_BTD is None else query_BTD
        value_BTHd = self.value(data_BTD).unflatten(-1, (self.n_heads, self.d_head))
        attended_BTHd = self.attend(n_BTD, value_BTHd, where, visit, query_BTD)
        return self.output(self._scale(attended_BTHd, query_BTD).flatten(2)), {}

    def _scale(self, attended_BTHd: Tensor, n_BTD: Tensor) -> Tensor:
        return attended_BTHd

    def init_rules(self, scale: float) -> Rules:
        """Truncated normals of variance scale^2 / fan-in."""
        wide, narrow = TruncatedNormal(scale / self.d_model**0.5), TruncatedNormal(scale / (self.n_heads * self.d_head) ** 0.5)
        return {"query.weight": wide, "key.weight": wide, "value.weight": wide, "output.weight": narrow}


class GatedAttention(DenseAttention):
    """SwitchHead with one expert as the official library has it: each head's result times sigmoid(gate . n)."""

    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__(d_model, n_heads, d_head)
        self.gate = nn.Linear(d_model, n_heads, bias=False)

    def _scale(self, attended_BTHd: Tensor, n_BTD: Tensor) -> Tensor:
        return attended_BTHd * torch.sigmoid(self.gate(n_BTD))[..., None]

    def init_rules(self, scale: float) -> Rules:
        """Normals, as in SwitchHead."""
        wide, narrow = Normal(scale / self.d_model**0.5), Normal(scale / (self.n_heads * self.d_head) ** 0.5)
        return {"query.weight": wide, "key.weight": wide, "value.weight": wide, "gate.weight": wide, "output.weight": narrow}
