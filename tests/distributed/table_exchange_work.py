"""What ranks run for test_table_exchange.py: visits to one layer with tables, and what came out on this rank.

Shape suffixes: T tokens of this rank, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distributed.collectives import recorded_order
from distributed.table_exchange import ColumnExchange
from distributed.topology import init_topology
from model.config import FeedForward
from model.initialise import Normal, draw
from model.slots import TABLES
from model.table_exchange import LocalTables, TableExchange
from model.visit import Visit

SLOTS: dict[str, dict[str, Any]] = {
    "pkm": {"kind": "pkm", "n_keys": 5, "heads": 2, "top_k": 4, "d_key": 6, "query_norm": "layer"},
    "pkm_halves": {"kind": "pkm_halves", "n_keys": 5, "heads": 3, "top_k": 4},
    "pkm_dense": {"kind": "pkm_halves", "n_keys": 4, "heads": 3, "top_k": 4, "activation": "softmax"},
    "peer": {"kind": "peer", "n_keys": 5, "heads": 3, "top_k": 4, "d_key": 6},
    "peer_glu": {"kind": "peer", "n_keys": 5, "heads": 2, "top_k": 3, "d_key": 4, "glu": True},
    "peer_relu": {"kind": "peer", "n_keys": 5, "heads": 2, "top_k": 3, "d_key": 4, "gate": "sigmoid", "activation": "relu"},
}


@dataclass(frozen=True)
class Case:
    """`tokens` has an entry a rank. The layer is visited `visits` times in a row, with a residual."""

    slot: str
    tokens: tuple[int, ...]
    d_model: int = 11
    visits: int = 2
    recompute: bool = False


def run_visits(case: Case, tables: TableExchange, rows: slice) -> dict[str, Tensor]:
    """Output and every gradient of the loss sum(y * target) over the tokens `rows`; tables as the exchange owns them."""
    config: Any = TypeAdapter(FeedForward).validate_python(SLOTS[case.slot])
    layer = TABLES[config.kind](case.d_model, config, tables).double()
    boxes = {name: shard.box for name, shard in layer.shards().items()}
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            shape = boxes[name].global_shape if name in boxes else tuple(parameter.shape)
            values = draw(Normal(0.7), name, shape, 1)
            parameter.copy_(values[boxes[name].index] if name in boxes else values)
    x_TD, n_TD, target_TD = torch.randn(3, sum(case.tokens), case.d_model, generator=torch.Generator().manual_seed(5)).double()[:, rows]
    x_TD, n_TD = x_TD.clone().requires_grad_(), n_TD.clone().requires_grad_()

    def visit(data_TD: Tensor, record: Any) -> Tensor:
        y_1TD, _ = layer(data_TD[None], (data_TD + n_TD)[None], Visit(record=record))
        return data_TD + y_1TD[0]

    y_TD = x_TD
    for _ in range(case.visits):
        y_TD = checkpoint(visit, y_TD, {}, use_reentrant=False, early_stop=False) if case.recompute else visit(y_TD, {})
    (y_TD * target_TD).sum().backward()
    assert x_TD.grad is not None and n_TD.grad is not None
    gradients = {f"d_{name}": parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    return {"y": y_TD.detach(), "d_x": x_TD.grad, "d_n": n_TD.grad, **gradients}


def sliced(case: Case) -> tuple[dict[str, Tensor], list[str]]:
    """This rank's share of the case, and the order of its collectives. Uninitialised memory holds NaN."""
    torch.set_deterministic_debug_mode("error")
    topology = init_topology(table_parallel=len(case.tokens), device="cpu", timeout_seconds=30, use_deepspeed=False)
    first = sum(case.tokens[: topology.rank])
    with recorded_order() as order:
        results = run_visits(case, ColumnExchange(topology.tables, topology.device), slice(first, first + case.tokens[topology.rank]))
    return results, order


def whole(case: Case) -> dict[str, Tensor]:
    """The same in one process."""
    return run_visits(case, LocalTables(), slice(0, sum(case.tokens)))
