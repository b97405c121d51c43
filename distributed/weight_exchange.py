"""Expert parallelism the other way round: tokens stay, and the experts of other ranks come to them.

A bank is gathered once a step and kept over all visits and micro-batches until the weights change. From the second step on
all banks set out together, in the order of their first use, and each is awaited where it is needed. A bank's
gradient is added up here, over visits by autograd and over micro-batches in float32 at least, and goes to the owners once,
in the backward of the step's last micro-batch. Owners keep the parameter, its master and its moments, as when tokens move.

A bank of MoEUT is visited 8 or 9 times a step, so above some 1,200 tokens a rank and step this sends fewer bytes than tokens do;
`distributed.move` measures which is faster.

Shape suffixes: E all experts, O those owned here, I width in, J width out, M ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed.collectives import Group, Pending, all_to_all
from distributed.dispatch_plan import owned_experts
from distributed.movement import Traffic
from distributed.topology import Topology
from kernels.rows import wide_dtype
from kernels.spans import span
from model.exchange import LocalExchange


@dataclass
class _Bank:
    """A gathered bank: its values, what they wait for, the same as a node of the graph of this micro-batch, and the gradient so far."""

    whole_EIJ: Tensor
    under_way: Pending | None
    node_EIJ: Tensor | None = None
    gradient_EIJ: Tensor | None = None


class WeightExchange(LocalExchange):
    """The `model.exchange.Exchange` of an expert-parallel group whose weights move.

    Every rank must use its banks for the first time in the same order, and run equally many backwards, whatever its data holds.

    Attributes:
        size: ranks in the group. traffic: bytes, ever growing.
    """

    def __init__(self, topology: Topology) -> None:
        if topology.expert_group is None:
            raise ValueError("a WeightExchange needs a process group; one process without a group takes a LocalExchange")
        self.group: Group = topology.expert_group
        self.rank, self.size = topology.expert_rank, topology.expert_parallel
        self.traffic = Traffic()
        self._last = True
        self._n_experts: dict[Tensor, int] = {}  # of every bank, in the order of first use
        self._banks: dict[Tensor, _Bank] = {}

    def owned(self, n_experts: int) -> range:
        """The contiguous range of experts whose parameters are here: floor(n*r/m) .. floor(n*(r+1)/m), maybe empty."""
        return owned_experts(n_experts, self.size, self.rank)

    def served(self, n_experts: int) -> range:
        """All: this rank's tokens meet every expert here."""
        return range(n_experts)

    def gather(self, weight: Tensor, n_experts: int) -> Tensor:
        """The whole bank [E, I, J] from this rank's part [O, I, J]: a collective at the first use after a change."""
        self._n_experts.setdefault(weight, n_experts)
        with span("dispatch"):
            if weight not in self._banks:
                self._banks |= {part: self._start(part, number) for part, number in self._n_experts.items() if part not in self._banks}
            bank = self._banks[weight]
            if bank.under_way is not None:
                bank.under_way.wait()
                bank.under_way = None
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return bank.whole_EIJ
        if bank.node_EIJ is None:
            bank.node_EIJ = _Enter.apply(weight, self, bank)
        return bank.node_EIJ

    def before_backward(self, last: bool) -> None:
        """Gradients go to their owners in a backward that is the `last` of its step; without a word, in every one."""
        self._last = last

    def weights_changed(self) -> None:
        """What was gathered is stale, and gradients that were not sent belong to a step that is over."""
        for bank in self._banks.values():
            if bank.under_way is not None:
                bank.under_way.wait()
        self._banks.clear()

    def _add(self, bank: _Bank, d_EIJ: Tensor) -> Tensor:
        """Take a micro-batch's gradient; the owned part of the step's after the last one, zero before."""
        bank.node_EIJ = None  # its graph is used up
        if bank.gradient_EIJ is not None:
            total_EIJ = bank.gradient_EIJ.add_(d_EIJ)
        else:
            total_EIJ = d_EIJ.to(wide_dtype(d_EIJ.dtype), copy=not self._last)
        bank.gradient_EIJ = None if self._last else total_EIJ
        if not self._last:
            return d_EIJ.new_zeros(len(self.owned(d_EIJ.shape[0])), *d_EIJ.shape[1:])
        with span("dispatch"):
            return self._reduce(total_EIJ)

    def _start(self, weight: Tensor, n_experts: int) -> _Bank:
        """Send the part owned here to all ranks, as rows, because parts may be of unequal size."""
        part_OIJ, sizes = weight.detach(), self._sizes(n_experts)
        whole_EIJ = part_OIJ.new_empty(n_experts, *part_OIJ.shape[1:])
        to_all = part_OIJ.repeat(self.size, 1, 1)
        pending = all_to_all("weights.gather", to_all, whole_EIJ, [sizes[self.rank]] * self.size, sizes, self.group)
        self._count(part_OIJ, (self.size - 1) * sizes[self.rank])
        return _Bank(whole_EIJ, pending)

    def _reduce(self, d_EIJ: Tensor) -> Tensor:
        """The sum over ranks, in rank order, of the part owned here."""
        sizes = self._sizes(d_EIJ.shape[0])
        n_owned = sizes[self.rank]
        arriving = d_EIJ.new_empty(self.size * n_owned, *d_EIJ.shape[1:])
        all_to_all("weights.reduce", d_EIJ.contiguous(), arriving, sizes, [n_owned] * self.size, self.group).wait()
        self._count(d_EIJ, d_EIJ.shape[0] - n_owned)
        return arriving.view(self.size, n_owned, *d_EIJ.shape[1:]).sum(0)

    def _sizes(self, n_experts: int) -> list[int]:
        return [len(owned_experts(n_experts, self.size, rank)) for rank in range(self.size)]

    def _count(self, rows: Tensor, n_rows: int) -> None:
        self.traffic.sent += n_rows * rows.shape[1:].numel() * rows.element_size()


class _Enter(torch.autograd.Function):
    """A gathered bank enters the graph; its gradient leaves it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, exchange: WeightExchange, bank: _Bank) -> Tensor:
        ctx.exchange, ctx.bank, ctx.dtype = exchange, bank, weight.dtype
        return bank.whole_EIJ.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_EIJ: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.exchange._add(ctx.bank, d_EIJ).to(ctx.dtype), None, None
