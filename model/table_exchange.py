"""How tokens meet tables that are cut along D: the seam between a layer and where the columns of its tables live.

A table of N rows of which a token picks a few is too large for one rank, and cut by rows it would be read unevenly. So a group
of ranks shares it by columns, and every rank does its columns' part for the tokens of all ranks of the group. A model never asks
for a rank: it takes its part in a `Meeting` of the group's tokens. `LocalTables` is the form of one process, where all columns
are here and nothing moves; `distributed.table_exchange` is the other.

Shape suffixes: T tokens of this rank, G tokens of all ranks that share the tables (rank by rank), D model width, S columns of D
that live here, F anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kernels.rows import wide_dtype
from model.sharding import Box, Shard


class Meeting(Protocol):
    """The tokens of one visit, on the ranks that share the tables.

    Every method is a collective of the group: all ranks call the same ones in the same order, whatever their tokens. Each is
    linear, and its backward is its transpose.
    """

    def gather(self, rows_TF: Tensor) -> Tensor:
        """rows_GF: what all ranks' tokens bring. Its gradient goes home summed over the ranks. Integers have none."""
        ...

    def scatter(self, x_TD: Tensor) -> Tensor:
        """x_GS: of all ranks' tokens the columns that live here."""
        ...

    def sum(self, part_GF: Tensor) -> Tensor:
        """Sums over the ranks of what each made from its columns: before a non-linearity reads them."""
        ...

    def back(self, y_GS: Tensor) -> Tensor:
        """y_TD: of this rank's tokens all columns. The transpose of `scatter`."""
        ...


class TableExchange(Protocol):
    """Brings tokens and the columns of tables together."""

    size: int
    """How many ranks share the tables; above 1 every table counts as partitioned."""

    def columns(self, d_model: int) -> range:
        """The columns that live on this rank."""
        ...

    def meet(self, n_tokens: int, d_model: int, record: dict[str, Any]) -> Meeting:
        """Open a visit.

        Args:
            n_tokens: of this rank; may differ over ranks and be 0.
            record: what this call learnt that a recomputation must not learn again (the ranks' token counts). Filled when empty,
                obeyed when not.
        """
        ...


class TableSlot(nn.Module):
    """Base of the slots with tables: one matrix [N, S] each, of whose D columns a rank holds those that live here.

    A table's gradient has float32 at least, whatever the table has: a row read often gets a little from each of many reads.
    """

    def __init__(self, d_model: int, exchange: TableExchange | None) -> None:
        super().__init__()
        self.d_model, self.table_exchange = d_model, exchange or LocalTables()
        self._shards: dict[str, Shard] = {}

    def add_table(self, name: str, n_rows: int) -> None:
        """A parameter for the columns of table `name` that live here."""
        columns = self.table_exchange.columns(self.d_model)
        self.register_parameter(name, nn.Parameter(torch.empty(n_rows, len(columns))))
        self._shards[name] = Shard(Box.columns((n_rows, self.d_model), columns.start, columns.stop), self.table_exchange.size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TableSlot:
        """What changes a module's type or device ends here. A gradient made before keeps its type."""
        super()._apply(fn, recurse)
        for name in self._shards:
            table = self.get_parameter(name)
            if table.grad is None:
                table.grad_dtype = wide_dtype(table.dtype)
        return self

    def meet(self, tokens_TF: Tensor, record: dict[str, Any]) -> Meeting:
        """The meeting of this visit's tokens."""
        return self.table_exchange.meet(len(tokens_TF), self.d_model, record.setdefault("feed_forward.tables", {}))

    def shards(self) -> dict[str, Shard]:
        """Where the columns held here lie in their tables."""
        return self._shards


class LocalTables:
    """All columns in this process: the identity form of `TableExchange` and of its `Meeting`."""

    size = 1

    def columns(self, d_model: int) -> range:
        return range(d_model)

    def meet(self, n_tokens: int, d_model: int, record: dict[str, Any]) -> LocalTables:
        return self

    def gather(self, rows_TF: Tensor) -> Tensor:
        return rows_TF

    def scatter(self, x_TD: Tensor) -> Tensor:
        return x_TD

    def sum(self, part_GF: Tensor) -> Tensor:
        return part_GF

    def back(self, y_GS: Tensor) -> Tensor:
        return y_GS
