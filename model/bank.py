"""A bank of experts: one matrix an expert, of which a rank holds those it owns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.exchange import Exchange
from model.sharding import Box, Shard


class ExpertBank(nn.Module):
    """`weight` [e, d_in, d_out] over the e experts that live here, a contiguous range of all `n_experts` (maybe none).

    The number of ranks in its shard is the same on every rank, whatever a rank owns.
    """

    weight: Tensor

    def __init__(self, exchange: Exchange, n_experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.exchange, self.n_experts = exchange, n_experts
        self.owned, self.served = exchange.owned(n_experts), exchange.served(n_experts)
        self.global_shape = (n_experts, d_in, d_out)
        self.weight = nn.Parameter(torch.empty(len(self.owned), d_in, d_out))

    def gathered(self) -> Tensor:
        """The experts that routes may name here, [served, d_in, d_out]."""
        return self.exchange.gather(self.weight, self.n_experts)

    def shards(self) -> dict[str, Shard]:
        """Where `weight` lies in the bank over all experts."""
        return {"weight": Shard(Box.rows(self.global_shape, self.owned.start, self.owned.stop), self.exchange.size)}
