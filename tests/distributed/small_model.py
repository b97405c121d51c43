"""A small module with what an engine must handle: replicated weights, experts visited twice and spread over ranks, one nobody reads.

Shape suffixes: N rows, D width, E experts of this rank, G experts in all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.topology import Topology
from model.exchange import Exchange
from model.sharding import Box


class SmallModel(nn.Module):
    """y = out(x + mix(x) + sum over experts of relu(x W_e)), with the experts applied twice."""

    def __init__(self, topology: Topology, n_experts: int = 3, width: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        bounds = [n_experts * rank // topology.expert_parallel for rank in range(topology.expert_parallel + 1)]
        self.first, self.last = bounds[topology.expert_rank], bounds[topology.expert_rank + 1]
        self.n_experts = n_experts
        self.topology = topology
        self.exchanges: list[Exchange] = []
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)
        self.unread = nn.Parameter(torch.full((width,), 0.5))  # gets no gradient: engines must still treat it alike
        bank_GDD = torch.randn(n_experts, width, width, generator=generator) * 0.3
        self.bank_EDD = nn.Parameter(bank_GDD[self.first : self.last].clone())
        with torch.no_grad():
            for parameter in (*self.mix.parameters(), *self.out.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, x_ND: Tensor) -> Tensor:
        for _ in range(2):
            x_ND = x_ND + torch.tanh(self.mix(x_ND)) + self._experts(x_ND)
        out_ND: Tensor = self.out(x_ND)
        return out_ND

    def boxes(self) -> dict[str, Box]:
        whole = {name: Box.whole(tuple(parameter.shape)) for name, parameter in self.named_parameters()}
        shape = (self.n_experts, *self.bank_EDD.shape[1:])
        return whole | {"bank_EDD": Box.rows(shape, self.first, self.last)}

    def partitioned_parameters(self) -> dict[str, int]:
        return {"bank_EDD": self.topology.expert_parallel} if self.topology.expert_parallel > 1 else {}

    def _experts(self, x_ND: Tensor) -> Tensor:
        """All ranks of the group compute their experts for all rows of the group, then the results are summed."""
        group, size = self.topology.expert_group, self.topology.expert_parallel
        if size == 1:
            return self._local_experts(x_ND)
        y_ND: Tensor = _SumOver.apply(self._local_experts(_Gather.apply(x_ND, group, size)), group)
        return y_ND.chunk(size)[self.topology.expert_rank]

    def _local_experts(self, x_ND: Tensor) -> Tensor:
        return torch.relu(torch.einsum("nd,edf->enf", x_ND, self.bank_EDD)).sum(0)


class _Gather(torch.autograd.Function):
    """Rows of all ranks of a group; every rank has equally many."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, group: Any, size: int) -> Tensor:
        ctx.group, ctx.size = group, size
        parts = [torch.empty_like(x_ND) for _ in range(size)]
        dist.all_gather(parts, x_ND.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(ctx.size)[dist.get_rank(ctx.group)], None, None


class _SumOver(torch.autograd.Function):
    """The sum over a group's ranks; each rank then uses its own part of it."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = y_ND.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
