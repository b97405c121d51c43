"""SwitchHead attention: value and output projections chosen per head among N_A experts (arXiv 2312.07987 eq. 7-10).

A token's row travels once and its results come back as one row: the value bank answers all heads of a token at once,
[H*d], and the output bank reads them so. The head of a route is its flat expert number divided by N_A.

Shape suffixes: B sequences, T tokens, N = B*T, D model width, H heads, K experts a head, d head width, S rows here, Q routes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.routed_linear import routed_linear
from model.attention import QueryKeyAttention, Statistics
from model.attention_config import SwitchHeadConfig
from model.bank import ExpertBank
from model.exchange import Exchange, ExpertWork, run_experts
from model.initialise import Normal, Rules
from model.rotary import Positions
from model.router import Record, Router, Routing
from model.visit import Visit


class SwitchHead(QueryKeyAttention):
    """Values routed by the source token, outputs by the destination token, each with its own router; no renormalisation.

    Flat expert number h * N_A + e in the banks `value` [H*N_A, D, d] and `output` [H*N_A, d, D] and in the routers.
    """

    def __init__(self, d_model: int, config: SwitchHeadConfig, exchange: Exchange) -> None:
        super().__init__(d_model, config.n_heads, config.d_head)
        self.experts_per_head, self.exchange = config.n_experts, exchange
        self.n_experts = config.n_heads * config.n_experts
        top_k = min(config.top_k, config.n_experts)
        routing = (d_model, config.n_experts, top_k, config.expert_dropout, config.n_heads)
        self.value_router = Router("attention.value", *routing)
        self.output_router = Router("attention.output", *routing)
        self.value = ExpertBank(exchange, self.n_experts, d_model, config.d_head)
        self.output = ExpertBank(exchange, self.n_experts, config.d_head, d_model)

    def forward(
        self, data_BTD: Tensor, n_BTD: Tensor, where: Positions, visit: Visit, query_BTD: Tensor | None = None
    ) -> tuple[Tensor, Statistics]:
        """Attention of `query_BTD` (None: `n_BTD`; queries, output router) to keys of `n_BTD` (value router too) and values of `data_BTD`.

        Gives y [B, T, D] and the routers' statistics.
        """
        record, query_BTD = visit.record, n_BTD if query_BTD is None else query_BTD
        value_routing = self.value_router(n_BTD, record, visit.repeat)
        output_routing = self.output_router(query_BTD, record, visit.repeat)
        value = self._run(self._values, data_BTD.flatten(0, 1), value_routing, record, "attention.value.exchange")
        value_BTHd = value.view(*data_BTD.shape[:2], self.n_heads, self.d_head)
        attended_BTHd = self.attend(n_BTD, value_BTHd, where, visit, query_BTD)
        rows = attended_BTHd.flatten(2).flatten(0, 1)
        y = self._run(self._outputs, rows, output_routing, record, "attention.output.exchange")
        statistics = {"attention.value": value_routing.statistic, "attention.output": output_routing.statistic}
        return y.view_as(query_BTD), statistics

    def _run(self, bank: Callable[[ExpertWork], Tensor], x_NC: Tensor, routing: Routing, record: Record, name: str) -> Tensor:
        first_H1 = torch.arange(0, self.n_experts, self.experts_per_head, device=x_NC.device)[:, None]
        flat_NR = (routing.expert_NMK + first_H1).flatten(1)
        return run_experts(self.exchange, bank, x_NC, flat_NR, routing.weight_NMK.flatten(1), self.n_experts, record.setdefault(name, {}))

    def _values(self, work: ExpertWork) -> Tensor:
        """[S, D] -> [S, H*d]: head h of a row is the sum over its routes of that head."""
        n_rows = work.x_SD.shape[0]
        by_head_Q = work.row_Q * self.n_heads + self._head(work.expert_Q)
        y = routed_linear(work.x_SD, self.value.gathered(), work.row_Q, by_head_Q, work.expert_Q, work.weight_Q, n_rows * self.n_heads)
        return y.view(n_rows, self.n_heads * self.d_head)

    def _outputs(self, work: ExpertWork) -> Tensor:
        """[S, H*d] -> [S, D]: one sum over heads and experts."""
        n_rows = work.x_SD.shape[0]
        x = work.x_SD.reshape(n_rows * self.n_heads, self.d_head)
        by_head_Q = work.row_Q * self.n_heads + self._head(work.expert_Q)
        return routed_linear(x, self.output.gathered(), by_head_Q, work.row_Q, work.expert_Q, work.weight_Q, n_rows)

    def _head(self, expert_Q: Tensor) -> Tensor:
        return (expert_Q + self.value.served.start) // self.experts_per_head

    def init_rules(self, scale: float) -> Rules:
        """Normals; the output bank counts the width of all heads."""
        wide, narrow = Normal(scale / self.d_model**0.5), Normal(scale / (self.n_heads * self.d_head) ** 0.5)
        rules: Rules = {f"{name}.weight": wide for name in ("query", "key", "value_router", "output_router", "value")}
        return rules | {"output.weight": narrow}
