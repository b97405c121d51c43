"""Memories and PEER with their tables cut along d over ranks equal one process, float64, outputs and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from table_exchange_work import SLOTS, Case, whole
from test_exchange import assert_close
from torch import Tensor

from distributed.table_exchange import ColumnExchange
from distributed.topology import Partition

TABLES = ("d_values", "d_down", "d_up", "d_glu")
LAYOUTS: dict[str, dict[str, Any]] = {
    "even": {"tokens": (6, 6), "d_model": 12},
    "11 columns over 2 ranks": {"tokens": (5, 3)},
    "11 columns over 4 ranks, one without tokens": {"tokens": (5, 0, 2, 4)},
    "recompute": {"tokens": (4, 0, 3), "visits": 3, "recompute": True},
    "nobody has tokens": {"tokens": (0, 0)},
}


def assemble(shares: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Ranks' results as one process has them: tokens and columns side by side, replicated parameters' gradients summed."""
    parts = {name: [share[name] for share in shares] for name in shares[0]}
    return {
        name: torch.cat(tensors, dim=1 if name in TABLES else 0) if name in (*TABLES, "y", "d_x", "d_n") else torch.stack(tensors).sum(0)
        for name, tensors in parts.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("slot", SLOTS)
def test_equals_one_process(pool: Any, slot: str, layout: str) -> None:
    case = Case(slot, **LAYOUTS[layout])
    answers = pool.run(len(case.tokens), "table_exchange_work:sliced", case=case)
    expected = whole(case)
    assert any(f"d_{name}" in expected for name in ("values", "down"))
    assert_close(assemble([share for share, _ in answers]), expected, 1e-12)
    assert all(order == answers[0][1] for _, order in answers)


def test_a_visit_learns_sizes_once(pool: Any) -> None:
    """Every visit's collectives, forward and recomputed; the sizes are kept in the record."""
    case = Case("peer", tokens=(4, 2), visits=3, recompute=True)
    order = [entry.split()[0] for entry in pool.run(2, "table_exchange_work:sliced", case=case)[0][1] if not entry.startswith("await")]
    names = ("tables.sizes", "tables.gather", "tables.scatter", "tables.sum", "tables.back", "tables.reduce")
    # Forward and recomputation: indices and gates, x out, the sum, y home. Backward: dy out, the sum, gates and dx home.
    assert {name: order.count(name) / case.visits for name in names} == {
        "tables.sizes": 1,
        "tables.gather": 2 * 2,
        "tables.scatter": 2 + 1,
        "tables.sum": 2 + 1,
        "tables.back": 2 + 1,
        "tables.reduce": 1,
    }


@pytest.mark.parametrize("slot", ["pkm", "pkm_halves", "pkm_dense"])
def test_memories_need_no_sum(pool: Any, slot: str) -> None:
    order = pool.run(2, "table_exchange_work:sliced", case=Case(slot, tokens=(4, 2)))[0][1]
    assert not any("tables.sum" in entry for entry in order) and any("tables.back" in entry for entry in order)


def test_exchange_needs_a_group() -> None:
    with pytest.raises(ValueError, match="LocalTables"):
        ColumnExchange(Partition(1, 0, None, None), torch.device("cpu"))
