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

from model.cache import VisitCache
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

    def attend(self, n_BTD: Tensor, value_BTHd: Tensor, where: Positions, cache: VisitCache | None) -> Tensor:
        """softmax(q k / sqrt(d)) v, [B, T, H, d], over the tokens that `where` allows, cached ones included."""
        query = rotate(self._heads(self.query(n_BTD)), where)
        key, value = rotate(self._heads(self.key(n_BTD)), where), value_BTHd.transpose(1, 2)
        if cache is not None:
            key, value = cache.extend(key, value)
        # Flash and cuDNN kernels refuse a batch of zero sequences (pytorch issue 133780); plain operators take it.
        with sdpa_kernel(SDPBackend.MATH) if n_BTD.shape[0] == 0 else nullcontext():
            attended_BHTd = F.scaled_dot_product_attention(query, key, value, attn_mask=where.mask, is_causal=where.causal)
        return attended_BHTd.transpose(1, 2)

    def _heads(self, x_BTN: Tensor) -> Tensor:
        return x_BTN.unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2)


class DenseAttention(QueryKeyAttention):
    """Multi-head attention without biases: the parameter-matched baseline."""

    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__(d_model, n_heads, d_head)
        self.value = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.output = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, where: Positions, visit: Visit) -> tuple[Tensor, Statistics]:
        """Attention of `n_BTD` with values read from `data_BTD`: y [B, T, D], and no statistics."""
        value_BTHd = self.value(data_BTD).unflatten(-1, (self.n_heads, self.d_head))
        attended_BTHd = self.attend(n_BTD, value_BTHd, where, visit.cache)
        return self.output(self._scale(attended_BTHd, n_BTD).flatten(2)), {}

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
