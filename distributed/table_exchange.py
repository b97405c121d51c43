"""Tables cut along D over a group of ranks: the group's tokens meet, every rank does its columns' part, and the parts go home.

A rank owns the columns floor(D*r/m) .. floor(D*(r+1)/m). What moves in a visit of a layer that reads R rows of a table a token: R
indices and gates to every rank of the group, one vector's slices out and one's back, and, where a non-linearity follows a dot product
with a row (PEER), a sum of R dot products over the group. Rows of tables never move. A visit has one size transfer and one host read,
neither of them in its recomputation.

Every rank runs the same collectives in the same order whatever its data holds: zero tokens is a size and not a branch.

Shape suffixes: T tokens of this rank, G tokens of all ranks of the group (rank by rank), D model width, S columns of D that live
here, F anything, M ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed.collectives import Group, all_gather, all_reduce, all_to_all
from distributed.dispatch_plan import owned_experts
from distributed.topology import Partition
from kernels.rows import wide_dtype
from kernels.spans import span


class ColumnExchange:
    """The `model.table_exchange.TableExchange` of the ranks of a partition."""

    def __init__(self, partition: Partition, device: torch.device) -> None:
        if partition.group is None:
            raise ValueError("a ColumnExchange needs a process group; one process without a group takes a LocalTables")
        self.group: Group = partition.group
        self.rank, self.size, self.device = partition.rank, partition.size, device

    def columns(self, d_model: int) -> range:
        """The contiguous range of columns of this rank: uneven when it must be."""
        return owned_experts(d_model, self.size, self.rank)

    def meet(self, n_tokens: int, d_model: int, record: dict[str, Any]) -> GroupMeeting:
        """Learn how many tokens every rank brings, unless `record` knows."""
        with span("dispatch"):
            if "tokens" not in record:
                record["tokens"] = all_gather("tables.sizes", torch.tensor([n_tokens], device=self.device), self.group).flatten().tolist()
        widths = [len(owned_experts(d_model, self.size, rank)) for rank in range(self.size)]
        return GroupMeeting(self.group, self.rank, record["tokens"], widths)


@dataclass(frozen=True)
class GroupMeeting:
    """See `model.table_exchange.Meeting`. `tokens` and `widths` (columns) have one entry a rank."""

    group: Group
    rank: int
    tokens: list[int]
    widths: list[int]

    def gather(self, rows_TF: Tensor) -> Tensor:
        """rows_GF of all ranks; the gradients are added up in rank order, in float32 at least."""
        rows_GF: Tensor = _Linear.apply(rows_TF, self.to_all, self.to_owners)
        return rows_GF

    def scatter(self, x_TD: Tensor) -> Tensor:
        """x_GS of all ranks' tokens."""
        x_GS: Tensor = _Linear.apply(x_TD, self.to_columns, self.to_tokens)
        return x_GS

    def sum(self, part_GF: Tensor) -> Tensor:
        """The sum over the ranks. Every rank's sum feeds that rank's columns, so a part's gradient is the sum over what it fed."""
        whole_GF: Tensor = _Linear.apply(part_GF, self.over_ranks, self.over_ranks)
        return whole_GF

    def back(self, y_GS: Tensor) -> Tensor:
        """y_TD of this rank's tokens."""
        y_TD: Tensor = _Linear.apply(y_GS, self.to_tokens, self.to_columns)
        return y_TD

    def over_ranks(self, part_GF: Tensor) -> Tensor:
        """Added up in place of every rank's part."""
        with span("dispatch"):
            return all_reduce("tables.sum", part_GF.clone(memory_format=torch.contiguous_format), self.group)

    def to_all(self, rows_TF: Tensor) -> Tensor:
        """Every rank's rows, rank by rank."""
        to_all = rows_TF.repeat(len(self.tokens), *[1] * (rows_TF.dim() - 1))
        n_here = [self.tokens[self.rank]] * len(self.tokens)
        return self._move("tables.gather", to_all, n_here, self.tokens, rows_TF.shape[1:])

    def to_owners(self, rows_GF: Tensor) -> Tensor:
        """What all ranks made for this rank's tokens, summed in rank order."""
        n_here = [self.tokens[self.rank]] * len(self.tokens)
        parts_F = self._move("tables.reduce", rows_GF, self.tokens, n_here, rows_GF.shape[1:])
        parts_MTF = parts_F.view(len(self.tokens), self.tokens[self.rank], *rows_GF.shape[1:])
        return parts_MTF.sum(0, dtype=wide_dtype(rows_GF.dtype)).to(rows_GF.dtype)

    def to_columns(self, x_TD: Tensor) -> Tensor:
        """A slice of every token to each rank."""
        slices = torch.cat([part_TS.flatten() for part_TS in x_TD.split(self.widths, dim=1)])
        n_here, width = self.tokens[self.rank], self.widths[self.rank]
        sent, received = [n_here * each for each in self.widths], [n * width for n in self.tokens]
        return self._move("tables.scatter", slices, sent, received, torch.Size()).view(-1, width)

    def to_tokens(self, y_GS: Tensor) -> Tensor:
        """All slices of this rank's tokens."""
        n_here, width = self.tokens[self.rank], self.widths[self.rank]
        sent, received = [n * width for n in self.tokens], [n_here * each for each in self.widths]
        slices = self._move("tables.back", y_GS.flatten(), sent, received, torch.Size()).split(received)
        return torch.cat([part.view(n_here, each) for part, each in zip(slices, self.widths, strict=True)], dim=1)

    def _move(self, name: str, data: Tensor, sent: list[int], received: list[int], shape: torch.Size) -> Tensor:
        arriving = data.new_empty(sum(received), *shape)
        with span("dispatch"):
            all_to_all(name, data.contiguous(), arriving, sent, received, self.group).wait()
        return arriving


class _Linear(torch.autograd.Function):
    """A movement, and its transpose for the gradients."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, move: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.transpose = transpose
        return move(data)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transpose(gradient), None, None
