"""Top-K activation: a dense feed-forward of which each token keeps its K largest hidden units.

Shape suffixes: B sequences, T tokens, N = B*T tokens, D model width, F hidden units, K kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention import Statistics
from model.dense_config import DenseFeedForwardConfig, TopKConfig
from model.feed_forward import DenseFeedForward
from model.router import recorded
from model.visit import Visit


class TopK(DenseFeedForward):
    """u = relu(x up + b), then the K largest of u alone times down, plus c (arXiv 2310.10837 eq. 6-7).

    No gradient goes through the choice. `down` is a dense product over the units that were not kept as well.
    """

    def __init__(self, d_model: int, config: TopKConfig) -> None:
        super().__init__(d_model, DenseFeedForwardConfig(d_ff=config.d_ff))
        self.top_k = config.top_k

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, visit: Visit) -> tuple[Tensor, Statistics]:
        """y [B, T, D] of `data_BTD`, and no statistics. The visit's `record["feed_forward"]` holds the units kept, int64 [N, K].

        Raises:
            ModelError: the recorded choices do not fit this batch.
        """
        hidden_BTF = torch.relu(self.up(data_BTD))
        hidden_NF = hidden_BTF.flatten(0, 1)
        unit_NK = recorded(visit.record, "feed_forward", (hidden_NF.shape[0], self.top_k))
        if unit_NK is None:
            unit_NK = visit.record["feed_forward"] = hidden_NF.detach().topk(self.top_k, dim=-1).indices
        kept_NF = torch.zeros_like(hidden_NF, dtype=torch.bool).scatter_(1, unit_NK, True)
        return self.down((hidden_NF * kept_NF).view_as(hidden_BTF)), {}
