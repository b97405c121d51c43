"""Mixture of multi-head attention (MoMHA) of the Sparse Universal Transformer (arXiv 2310.07096; code shawntan/SUT @192cbd3).

Keys and values are shared by all experts. A token asks with the queries of its K experts, H heads each, and what they find goes
through the output projections of the same experts, added by the router's weights. Positions are rotary here; the paper's are relative.

Shape suffixes: B sequences, T tokens, N = B*T, D model width, H heads, K experts a token, E experts, d head width, W = H*d.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.routed_linear import routed_linear
from model.attention import Statistics, attend
from model.attention_config import MomhaConfig
from model.bank import ExpertBank
from model.exchange import LocalExchange
from model.initialise import Normal, Rules, Uniform
from model.rotary import Positions
from model.router import Routing
from model.slot_router import SlotRouter
from model.visit import Visit


class Momha(nn.Module):
    """Banks `query` [E, D, W] and `output` [E, W, D], all of them here; keys and values dense."""

    def __init__(self, d_model: int, config: MomhaConfig) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head, self.top_k = d_model, config.n_heads, config.d_head, config.top_k
        self.width = config.n_heads * config.d_head
        self.router = SlotRouter(d_model, config.routing(d_model), name="attention")
        self.key = nn.Linear(d_model, self.width, bias=False)
        self.value = nn.Linear(d_model, self.width, bias=False)
        self.query = ExpertBank(LocalExchange(), config.n_experts, d_model, self.width)
        self.output = ExpertBank(LocalExchange(), config.n_experts, self.width, d_model)

    def forward(
        self, data_BTD: Tensor, n_BTD: Tensor, where: Positions, visit: Visit, query_BTD: Tensor | None = None
    ) -> tuple[Tensor, Statistics]:
        """Attention of `query_BTD` (None: `n_BTD`) to keys of `n_BTD` and values of `data_BTD`: y [B, T, D], the router's statistic."""
        query_BTD = n_BTD if query_BTD is None else query_BTD
        routing = self.router(query_BTD, visit.record, visit.repeat)
        key_BTHd, value_BTHd = (x.unflatten(-1, (self.n_heads, self.d_head)) for x in (self.key(n_BTD), self.value(data_BTD)))
        asked = self._queries(query_BTD.flatten(0, 1), routing).view(*query_BTD.shape[:2], self.n_heads * self.top_k, self.d_head)
        attended = attend(asked.transpose(1, 2), key_BTHd.transpose(1, 2), value_BTHd.transpose(1, 2), where, visit)
        return self._outputs(attended.flatten(0, 1), routing).view_as(query_BTD), {"attention": routing.statistic}

    def _queries(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """[N, H*K, d]: the experts of one head stand side by side, as those who share its keys must."""
        n_routes = routing.expert_NMK.numel()
        token_Q, route_Q = self._places(n_routes, x_ND.device)
        unweighed_Q = torch.ones(n_routes, dtype=x_ND.dtype, device=x_ND.device)
        asked_QW = routed_linear(x_ND, self.query.gathered(), token_Q, route_Q, routing.expert_NMK.flatten(), unweighed_Q, n_routes)
        return asked_QW.view(x_ND.shape[0], self.top_k, self.n_heads, self.d_head).transpose(1, 2).flatten(1, 2)

    def _outputs(self, attended_NHKd: Tensor, routing: Routing) -> Tensor:
        """[N, D], from [N, H*K, d]."""
        attended_NKHd = attended_NHKd.unflatten(1, (self.n_heads, self.top_k)).transpose(1, 2)
        token_Q, route_Q = self._places(routing.expert_NMK.numel(), attended_NHKd.device)
        chosen = routing.expert_NMK.flatten(), routing.weight_NMK.flatten()
        rows_QW = attended_NKHd.reshape(route_Q.shape[0], self.width)
        return routed_linear(rows_QW, self.output.gathered(), route_Q, token_Q, *chosen, attended_NHKd.shape[0])

    def _places(self, n_routes: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token and number of every route."""
        route_Q = torch.arange(n_routes, device=device)
        return route_Q // self.top_k, route_Q

    def init_rules(self, scale: float) -> Rules:
        """Keys and values as in the code (Xavier, gain 1/sqrt 2); experts, for which the paper gives none, as in SwitchHead."""
        shared, router = Uniform((3 / (self.d_model + self.width)) ** 0.5), Uniform(self.d_model**-0.5)
        rules: Rules = {"key.weight": shared, "value.weight": shared}
        rules |= {f"router.{name}": router for name in ("weight", "hidden.weight", "hidden.bias")}
        return rules | {"query.weight": Normal(scale / self.d_model**0.5), "output.weight": Normal(scale / self.width**0.5)}
