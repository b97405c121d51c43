"""PEER: experts of one hidden neuron, picked among very many by product keys (arXiv 2407.04153, Algorithm 1).

Shape suffixes: B sequences, T tokens of all sequences, H heads, K experts a head, N experts, D model width.
Of all ranks that share the tables: G tokens, R = H * K experts each; S columns of D that live here (`model.table_exchange`).
"""

from __future__ import annotations

from torch import Tensor

from kernels.peer import ACTIVATIONS, peer
from kernels.table_rows import gather_dot, gather_sum
from model.attention import Statistics
from model.initialise import Normal, Rules, Uniform
from model.product_key_config import PeerConfig
from model.product_keys import ProductKeys, Queries
from model.table_exchange import Meeting, TableExchange, TableSlot
from model.visit import Visit


class Peer(TableSlot):
    """y = sum over heads and their k winners of gate * act(down_i . x) * up_i.

    With `glu`, (down_i . x) * act(glu_i . x) takes the place of act(down_i . x). Tables `down`, `up` and maybe `glu` [N, S], no
    biases. Queries read the normalised stream, experts the data path. The layer is homogeneous in its data with `relu`, without `glu`.
    """

    down: Tensor
    up: Tensor
    glu: Tensor

    def __init__(self, d_model: int, config: PeerConfig, tables: TableExchange | None = None) -> None:
        super().__init__(d_model, tables)
        self.config = config
        self.queries = Queries(d_model, config.heads, config.d_key, bias=False, norm=config.query_norm)
        sets = config.heads if config.keys_per_head else 1
        self.keys = ProductKeys("feed_forward", config.heads, sets, config.n_keys, config.top_k, config.d_key)
        self.add_table("down", config.n_slots)
        self.add_table("up", config.n_slots)
        if config.glu:
            self.add_table("glu", config.n_slots)

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, visit: Visit) -> tuple[Tensor, Statistics]:
        """y [B, T, D], and no statistics; experts are recorded as `feed_forward`, int64 [T, H, K], their gates under `gates`."""
        winners = self.keys(self.queries(n_BTD, visit.record), visit.record)
        gate_THK = winners.score_THK.softmax(dim=-1) if self.config.gate == "softmax" else winners.score_THK.sigmoid()
        visit.record.setdefault("gates", {})["feed_forward"] = gate_THK.detach()
        x_TD, picked = data_BTD.flatten(0, 1), (winners.slot_THK.flatten(1), gate_THK.flatten(1))
        if self.table_exchange.size == 1 and not self.config.glu:  # whole rows: one kernel for what parts of rows need three for
            y_TD = peer(x_TD, *picked, self.down, self.up, self.config.activation)
        else:
            y_TD = self._by_products(x_TD, *picked, self.meet(x_TD, visit.record))
        return y_TD.view_as(data_BTD), {}

    def _by_products(self, x_TD: Tensor, expert_TR: Tensor, gate_TR: Tensor, group: Meeting) -> Tensor:
        """By the columns here: only a dot product over all of D may meet the activation."""
        expert_GR, gate_GR, x_GS = group.gather(expert_TR), group.gather(gate_TR), group.scatter(x_TD)
        dots = [group.sum(gather_dot(x_GS, table, expert_GR)) for table in ([self.glu, self.down] if self.config.glu else [self.down])]
        hidden_GR = ACTIVATIONS[self.config.activation].value(dots[0])
        for dot_GR in dots[1:]:
            hidden_GR = hidden_GR * dot_GR
        return group.back(gather_sum(gate_GR * hidden_GR, self.up, expert_GR))

    def init_rules(self, scale: float) -> Rules:
        """The paper gives none. Queries and both tables: normals of variance scale^2 / d; sub-keys as in product-key memories."""
        wide, key = Normal(scale / self.d_model**0.5), Uniform((self.config.d_key / 2) ** -0.5)
        return {"queries.linear.weight": wide, "keys.first": key, "keys.second": key, **dict.fromkeys(self.shards(), wide)}
