"""The collectives of one dispatch and its combine, forward and backward, by one plan.

Outward, from a token's rank to its experts, go rows and routes, and in the backward the gradients of results. Homeward
go results, and in the backward the gradients of rows and of routing weights, which are formed where the expert ran.

Shape suffixes: T tokens, K experts a token chose, R rows sent, S rows received, Q routes sent or received, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed.collectives import Group, Pending, all_to_all
from distributed.dispatch_plan import Plan, sum_answers


@dataclass
class Traffic:
    """Bytes that left this rank for other ranks, routes and their gradients included, size transfers not (`sent`).

    `one_copy_an_expert` is what the rows alone would have come to if each went once for each expert of its token.
    """

    sent: int = 0
    one_copy_an_expert: int = 0


class Movement:
    """What is under way for one part of one visit. Every `start_*` is followed by its `finish_*`, once.

    A recomputed visit's result is asked for only where something behind it was saved. So when `recomputed`, results are
    sent when they are awaited and not when they are ready: usually checkpointing stops before, and they are never sent.
    """

    def __init__(self, plan: Plan, group: Group, rank: int, traffic: Traffic, recomputed: bool) -> None:
        self.plan, self.group, self.rank, self.traffic, self.recomputed = plan, group, rank, traffic, recomputed
        self._under_way: dict[str, tuple[Pending, Tensor]] = {}
        self._weight_shape = torch.Size()
        self._unsent_SD: Tensor | None = None

    def start_dispatch(self, x_TD: Tensor, weight_TK: Tensor) -> None:
        """Send rows and routes; a route is its weight's bits beside its expert's code, eight bytes in float32."""
        plan = self.plan
        self._weight_shape = weight_TK.shape
        weight_Q = weight_TK.flatten().index_select(0, plan.order_Q)
        bits_Q = weight_Q.view(torch.int32 if weight_Q.dtype == torch.float32 else torch.int64)
        self._outward("dispatch.routes", torch.stack([bits_Q, plan.code_Q.to(bits_Q.dtype)], dim=1), by_route=True)
        self._outward("dispatch.rows", x_TD.index_select(0, plan.token_R))

    def finish_dispatch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_SD as it arrived, and of every route its row, its local expert and its weight."""
        routes_Q2 = self._arrived("dispatch.routes")
        bits_Q, code_Q = routes_Q2[:, 0].contiguous(), routes_Q2[:, 1].to(torch.int64)
        weight_Q = bits_Q.view(torch.float32 if bits_Q.dtype == torch.int32 else torch.float64)
        row_Q = (code_Q & 1).cumsum(0) - 1
        return self._arrived("dispatch.rows"), row_Q, code_Q >> 1, weight_Q

    def start_combine(self, y_SD: Tensor) -> None:
        """Send every row's result back to the rank that the row came from."""
        if self.recomputed:
            self._unsent_SD = y_SD.detach()  # with its graph it would hold itself: a leak a visit
        else:
            self._homeward("combine.rows", y_SD)

    def finish_combine(self) -> Tensor:
        """y_TD: the results of a token, summed."""
        if self._unsent_SD is not None:
            self._homeward("combine.rows", self._unsent_SD)
            self._unsent_SD = None
        return sum_answers(self._arrived("combine.rows"), self.plan.slot_JT)

    def start_combine_backward(self, dy_TD: Tensor) -> None:
        """A result's gradient is the token's, on each rank that answered."""
        self._outward("combine.gradients", dy_TD.index_select(0, self.plan.token_R))

    def finish_combine_backward(self) -> Tensor:
        """dy_SD of the results computed here."""
        return self._arrived("combine.gradients")

    def start_dispatch_backward(self, dx_SD: Tensor, dweight_Q: Tensor) -> None:
        """Send the gradients of rows and weights home."""
        self._homeward("dispatch.weight_gradients", dweight_Q, by_route=True)
        self._homeward("dispatch.gradients", dx_SD)

    def finish_dispatch_backward(self) -> tuple[Tensor, Tensor]:
        """dx_TD, summed over the ranks a token went to, and dweight_TK."""
        sorted_Q = self._arrived("dispatch.weight_gradients")
        dweight_Q = torch.empty_like(sorted_Q).scatter_(0, self.plan.order_Q, sorted_Q)
        dx_TD = sum_answers(self._arrived("dispatch.gradients"), self.plan.slot_JT)
        return dx_TD, dweight_Q.view(self._weight_shape)

    def _outward(self, name: str, data: Tensor, by_route: bool = False) -> None:
        plan = self.plan
        if by_route:
            self._start(name, data, plan.sent_routes, plan.received_routes)
        else:
            self._start(name, data, plan.sent_rows, plan.received_rows, copies=plan.sent_routes)

    def _homeward(self, name: str, data: Tensor, by_route: bool = False) -> None:
        plan = self.plan
        if by_route:
            self._start(name, data, plan.received_routes, plan.sent_routes)
        else:
            self._start(name, data, plan.received_rows, plan.sent_rows, copies=plan.received_routes, spare=1)

    def _start(self, name: str, data: Tensor, send: list[int], receive: list[int], copies: list[int] | None = None, spare: int = 0) -> None:
        """What arrives has `spare` zero rows at its end; `copies` is what `send` would be with one copy an expert."""
        n_arriving = sum(receive)
        arriving = data.new_empty(n_arriving + spare, *data.shape[1:])
        arriving[n_arriving:].zero_()
        self._under_way[name] = all_to_all(name, data.contiguous(), arriving[:n_arriving], send, receive, self.group), arriving
        row_bytes = data.element_size() * data.shape[1:].numel()
        self.traffic.sent += (sum(send) - send[self.rank]) * row_bytes
        if copies is not None:
            self.traffic.one_copy_an_expert += (sum(copies) - copies[self.rank]) * row_bytes

    def _arrived(self, name: str) -> Tensor:
        pending, arriving = self._under_way.pop(name)
        pending.wait()
        return arriving
