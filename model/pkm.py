"""Product-key memories: a table of values of which a token sums the few that its keys find.

Shape suffixes: B sequences, T tokens of all sequences, H heads, K slots a head, N slots in all, n sub-keys a half, D model width.
Of all ranks that share the values: G tokens; S columns of D that live here (`model.table_exchange`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.table_rows import gather_sum
from kernels.wide_linear import wide_linear
from model.attention import Statistics
from model.initialise import Normal, Rules, Uniform
from model.product_key_config import PKMConfig, PKMHalvesConfig
from model.product_keys import ProductKeys, Queries
from model.router import Record
from model.table_exchange import Meeting, TableExchange, TableSlot
from model.visit import Visit


class PKM(TableSlot):
    """y = sum over heads and their k winners of softmax(score) * value (arXiv 1907.05242); the softmax is over one head's winners."""

    values: Tensor

    def __init__(self, d_model: int, config: PKMConfig, tables: TableExchange | None = None) -> None:
        super().__init__(d_model, tables)
        self.d_key = config.d_key
        self.queries = Queries(d_model, config.heads, config.d_key, bias=True, norm=config.query_norm)
        self.keys = ProductKeys("feed_forward", config.heads, config.heads, config.n_keys, config.top_k, config.d_key)
        self.add_table("values", config.n_slots)

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, visit: Visit) -> tuple[Tensor, Statistics]:
        """y [B, T, D] of `n_BTD`, and no statistics; slots are recorded as `feed_forward`, their gates under `gates`."""
        winners = self.keys(self.queries(n_BTD, visit.record), visit.record)
        gate_THK = winners.score_THK.softmax(dim=-1)
        visit.record.setdefault("gates", {})["feed_forward"] = gate_THK.detach()
        group = self.meet(gate_THK, visit.record)
        y_GS = gather_sum(group.gather(gate_THK.flatten(1)), self.values, group.gather(winners.slot_THK.flatten(1)))
        return group.back(y_GS).view_as(data_BTD), {}

    def init_rules(self, scale: float) -> Rules:
        """As in the authors' code (facebookresearch/XLM @cd281d3): no scaling by depth."""
        query, key = Uniform(self.d_model**-0.5), Uniform((self.d_key / 2) ** -0.5)
        rules: Rules = {"queries.linear.weight": query, "queries.linear.bias": query, "keys.first": key, "keys.second": key}
        return rules | {"values": Normal(self.d_model**-0.5)}


class PKMHalves(TableSlot):
    """The memory of arXiv 2310.10837 (eq. 8 and its released code): the input's own halves meet every head's sub-keys.

    Sparse: the heads' winners side by side, activated together. Dense: one score a slot, summed over heads, then activated.
    """

    values: Tensor

    def __init__(self, d_model: int, config: PKMHalvesConfig, tables: TableExchange | None = None) -> None:
        super().__init__(d_model, tables)
        self.config = config
        self.keys = ProductKeys("feed_forward", config.heads, config.heads, config.n_keys, config.top_k, d_model)
        self.add_table("values", config.n_slots)

    def forward(self, data_BTD: Tensor, n_BTD: Tensor, visit: Visit) -> tuple[Tensor, Statistics]:
        """y [B, T, D] of `n_BTD`, and no statistics; slots and gates are recorded as in `PKM`, but where all slots are read."""
        n_TD = n_BTD.flatten(0, 1)
        group = self.meet(n_TD, visit.record)
        # Read in full, a token's scores are wider than the token: it is the tokens that meet, and every rank scores all of them.
        y_GS = self._all(group.gather(n_TD)) if self.config.dense else self._some(n_TD, group, visit.record)
        return group.back(y_GS).view_as(data_BTD), {}

    def _some(self, n_TD: Tensor, group: Meeting, record: Record) -> Tensor:
        winners = self.keys(n_TD[:, None], record)
        gate_TR = self._activate(winners.score_THK.flatten(1))
        record.setdefault("gates", {})["feed_forward"] = gate_TR.detach().view_as(winners.slot_THK)
        return gather_sum(group.gather(gate_TR), self.values, group.gather(winners.slot_THK.flatten(1)))

    def _all(self, n_GD: Tensor) -> Tensor:
        halves = zip(n_GD.split(self.keys.widths, dim=-1), (self.keys.first, self.keys.second), strict=True)
        one_Gn, two_Gn = (wide_linear(half, key.unflatten(0, (self.config.heads, -1)).sum(0)) for half, key in halves)
        score_GN = (one_Gn[:, :, None] + two_Gn[:, None, :]).flatten(1)
        return self._activate(score_GN).to(self.values.dtype) @ self.values

    def _activate(self, score: Tensor) -> Tensor:
        return torch.relu(score) if self.config.activation == "relu" else score.softmax(dim=-1)

    def init_rules(self, scale: float) -> Rules:
        """Normals of the paper's two-layer form: keys as its first layer, values as its second, whose fan-in is a choice."""
        fan_in = {"d_model": self.d_model, "slots": self.config.n_slots, "reads": self.config.reads}[self.config.value_fan_in]
        key = Normal(scale / self.d_model**0.5)
        return {"keys.first": key, "keys.second": key, "values": Normal(scale / fan_in**0.5)}
