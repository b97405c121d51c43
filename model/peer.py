"""PEER: experts of one hidden neuron, picked among very many by product keys (arXiv 2407.04153, Algorithm 1).

Shape suffixes: B sequences, T tokens of all sequences, H heads, K experts a head, N experts, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.peer import peer
from model.attention import Statistics
from model.initialise import Normal, Rules, Uniform
from model.product_key_config import PeerConfig
from model.product_keys import ProductKeys, Queries
from model.visit import Visit


class Peer(nn.Module):
    """y = sum over heads and their k winners of gate * act(down_i . x) * up_i.

    Tables `down`, `up` [N, D], no biases. Queries read the normalised stream, experts the data path. The layer is homogeneous in
    its data with `relu` only.
    """

    def __init__(self, d_model: int, config: PeerConfig) -> None:
        super().__init__()
        self.d_model, self.config = d_model, config
        self.queries = Queries(d_model, config.heads, config.d_key, bias=False, norm=config.query_norm)
        sets = config.heads if config.keys_per_head else 1
        self.keys = ProductKeys("feed_forward", config.heads, sets, config.n_keys, config.top_k, config.d_key)
        self.down = nn.Parameter(torch.empty(config.n_slots, d_model))
        self.up = nn.Parameter(torch.empty(config.n_slots, d_model))

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, visit: Visit) -> tuple[Tensor, Statistics]:
        """y [B, T, D], and no statistics; experts are recorded as `feed_forward`, int64 [T, H, K], their gates under `gates`."""
        winners = self.keys(self.queries(n_BTD, visit.record), visit.record)
        gate_THK = winners.score_THK.softmax(dim=-1) if self.config.gate == "softmax" else winners.score_THK.sigmoid()
        visit.record.setdefault("gates", {})["feed_forward"] = gate_THK.detach()
        x_TD, picked = data_BTD.flatten(0, 1), (winners.slot_THK.flatten(1), gate_THK.flatten(1))
        return peer(x_TD, *picked, self.down, self.up, self.config.activation).view_as(data_BTD), {}

    def init_rules(self, scale: float) -> Rules:
        """The paper gives none. Queries and both tables: normals of variance scale^2 / d; sub-keys as in product-key memories."""
        wide, key = Normal(scale / self.d_model**0.5), Uniform((self.config.d_key / 2) ** -0.5)
        return {"queries.linear.weight": wide, "keys.first": key, "keys.second": key, "down": wide, "up": wide}
