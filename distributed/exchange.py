"""Expert parallelism: tokens travel to the ranks that own their experts, one summed vector a token comes back.

The exchange of a batch has four movements, each one collective or two, started and awaited apart so that experts can
work meanwhile. Autograd runs nodes in reverse order of creation, so with two parts the backward overlaps as well:

    forward     dispatch 0 | dispatch 1 || experts 0 | combine 0 || experts 1 | combine 1
    backward    combine 1' | combine 0' || experts 1' | dispatch 1' || experts 0' | dispatch 0'

Every rank runs the same collectives in the same order whatever its data holds: zero tokens is a size and not a branch.

Shape suffixes: T tokens of this rank, K experts a token chose, M ranks, R rows sent, S rows received, Q routes (row, expert),
D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed.collectives import Group, all_to_all
from distributed.dispatch_plan import Plan, complete, owned_experts, owner_bounds, route
from distributed.movement import Movement, Traffic
from distributed.topology import Topology
from kernels.spans import span
from model.exchange import ExpertWork


class TokenExchange:
    """The `model.exchange.Exchange` of an expert-parallel group.

    Attributes:
        size: ranks in the group. parts: in how many parts a batch is cut for overlap. traffic: bytes, ever growing.
    """

    def __init__(self, topology: Topology, parts: int = 2) -> None:
        if topology.expert_group is None:
            raise ValueError("a TokenExchange needs a process group; one process without a group takes a LocalExchange")
        self.group: Group = topology.expert_group
        self.rank, self.size, self.parts = topology.expert_rank, topology.expert_parallel, parts
        self.device = topology.device
        self.traffic = Traffic()
        self._bounds: dict[int, Tensor] = {}

    def owned(self, n_experts: int) -> range:
        """The contiguous range of experts of this rank: floor(n*r/m) .. floor(n*(r+1)/m), empty on some when n < m."""
        return owned_experts(n_experts, self.size, self.rank)

    def served(self, n_experts: int) -> range:
        """Those owned: tokens come to them."""
        return self.owned(n_experts)

    def gather(self, weight: Tensor, n_experts: int) -> Tensor:
        """The weights stay where they are."""
        return weight

    def before_backward(self, last: bool) -> None:
        """Nothing waits for it."""

    def weights_changed(self) -> None:
        """No copy was kept."""

    def dispatch(self, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, n_experts: int, record: dict[str, Any]) -> Dispatched:
        """Send every token once to each rank that owns one of its experts; `wait()` gives `ExpertWork`.

        Args:
            x_TD: tokens, any float type. expert_TK: int64 global expert numbers, different within a token.
            weight_TK: travels in float32 at least.
            n_experts: experts in all.
            record: keeps the plan; a recomputation that brings it again makes no size transfer.
        """
        with span("dispatch"):
            recomputed = "plan" in record
            if not recomputed:
                record["plan"] = self._plan(expert_TK, n_experts)
            weight_TK = weight_TK.to(torch.promote_types(weight_TK.dtype, torch.float32))
            movement = Movement(record["plan"], self.group, self.rank, self.traffic, recomputed)
            # With it every rank's backward runs the same collectives, also where no input asks for a gradient.
            anchor = x_TD.new_empty(0).requires_grad_(torch.is_grad_enabled())
            return Dispatched(movement, _StartDispatch.apply(x_TD, weight_TK, anchor, movement))

    def combine(self, y_SD: Tensor, dispatched: Any) -> Combined:
        """Send the results of what `dispatch` returned home, of any width; `wait()` gives y_TD, summed over the ranks.

        The sum is taken in float32 at least and returned in the type of `y_SD`.
        """
        if dispatched.ticket.requires_grad and not y_SD.requires_grad:
            raise ValueError("the experts returned a result without a gradient; its backward would leave the other ranks waiting")
        with span("dispatch"):
            return Combined(dispatched.movement, _StartCombine.apply(y_SD, dispatched.movement))

    def _plan(self, expert_TK: Tensor, n_experts: int) -> Plan:
        """The only size transfer and the only host read."""
        if n_experts not in self._bounds:
            self._bounds[n_experts] = torch.tensor(owner_bounds(n_experts, self.size), device=self.device)
        routing = route(expert_TK, self._bounds[n_experts])
        ones = [1] * self.size
        received_M2 = torch.empty_like(routing.counts_M2)
        all_to_all("dispatch.sizes", routing.counts_M2, received_M2, ones, ones, self.group).wait()
        sent, received = torch.stack([routing.counts_M2, received_M2]).tolist()
        return complete(routing, sent, received)


@dataclass
class Dispatched:
    """Rows on their way to the experts."""

    movement: Movement
    ticket: Tensor

    def wait(self) -> ExpertWork:
        """The rows and routes that other ranks sent here."""
        with span("dispatch"):
            return ExpertWork(*_AwaitDispatch.apply(self.ticket, self.movement))


@dataclass
class Combined:
    """Results on their way home."""

    movement: Movement
    ticket: Tensor

    def wait(self) -> Tensor:
        """One summed vector a token."""
        with span("dispatch"):
            y_TD: Tensor = _AwaitCombine.apply(self.ticket, self.movement)
            return y_TD


# Each movement is a pair of autograd nodes tied by an empty tensor, the ticket. The backward of the second node starts
# the gradients' way and the backward of the first awaits it, so whatever autograd runs between them is overlapped.


class _StartDispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_TK: Tensor, anchor: Tensor, movement: Movement) -> Tensor:
        ctx.movement = movement
        movement.start_dispatch(x_TD, weight_TK)
        return x_TD.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ticket: Tensor) -> tuple[Tensor | None, ...]:
        with span("dispatch"):
            return (*ctx.movement.finish_dispatch_backward(), None, None)


class _AwaitDispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ticket: Tensor, movement: Movement) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.movement = movement
        x_SD, row_Q, expert_Q, weight_Q = movement.finish_dispatch()
        ctx.mark_non_differentiable(row_Q, expert_Q)
        return x_SD, row_Q, expert_Q, weight_Q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_SD: Tensor, _row: None, _expert: None, dweight_Q: Tensor) -> tuple[Tensor | None, ...]:
        with span("dispatch"):
            ctx.movement.start_dispatch_backward(dx_SD, dweight_Q)
            return dx_SD.new_empty(0), None


class _StartCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, movement: Movement) -> Tensor:
        ctx.movement = movement
        movement.start_combine(y_SD)
        return y_SD.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ticket: Tensor) -> tuple[Tensor | None, ...]:
        with span("dispatch"):
            return ctx.movement.finish_combine_backward(), None


class _AwaitCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ticket: Tensor, movement: Movement) -> Tensor:
        ctx.movement = movement
        return movement.finish_combine()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        with span("dispatch"):
            ctx.movement.start_combine_backward(dy_TD)
            return dy_TD.new_empty(0), None
