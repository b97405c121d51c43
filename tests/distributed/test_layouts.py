"""155 experts, and tables cut along d, over any layout equal one process, when the choices of one process are replayed.

Without replay the first flipped top-k choice (seen at step 2 with 155 experts) parts the runs at 1e-3.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from fragments import whole, worst
from pool import Pool

LONG = os.environ.get("MOOTRON_LONG_TESTS") == "1"
# Every world, every expert parallelism and every stage, each pair of neighbours once; all together in the long form.
FEW = [(2, 1, 1), (2, 2, 2), (3, 3, 1), (4, 2, 2), (4, 2, 1), (4, 4, 2)]
LAYOUTS = [(*place, stage) for place in [(2, 1), (2, 2), (3, 3), (4, 2), (4, 4)] for stage in (1, 2)] if LONG else FEW
ADAMW: dict[str, Any] = {"steps": 20, "lr": 1e-3, "clip": 0.25, "accumulate": 1}
SGD: dict[str, Any] = {"steps": 5, "lr": 1e-1, "clip": 0.25, "accumulate": 2, "optimizer": "sgd"}


@pytest.fixture(scope="module")
def alone(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process without DeepSpeed and without exchange: its runs, and where it wrote its choices."""
    return one_process(pool, tmp_path_factory, "experts", {"adamw": ADAMW, "sgd": SGD})


@pytest.fixture(scope="module")
def tables_alone(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same for the model with tables."""
    return one_process(pool, tmp_path_factory, "tables", {"sgd": SGD})


def one_process(pool: Pool, tmp_path_factory: pytest.TempPathFactory, kind: str, ways: dict[str, Any]) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for name, settings in ways.items():
        folder = tmp_path_factory.mktemp(name)
        runs[name] = pool.run(1, "layouts_work:train", choices=str(folder), record=True, engine="plain", kind=kind, **settings)
        runs[f"{name} choices"] = str(folder)
        assert min(runs[name][0]["norms"]) > 0.25, "clipping is not active"
    return runs


def largest_difference(found: list[float], expected: list[float]) -> float:
    """Relative, over steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("world", "expert_parallel", "zero_stage"), LAYOUTS)
def test_any_layout_equals_one_process(pool: Pool, alone: dict[str, Any], world: int, expert_parallel: int, zero_stage: int) -> None:
    compare(pool, alone, world, {"expert_parallel": expert_parallel, "zero_stage": zero_stage, "record": False})


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_moving_weights_equals_one_process(pool: Pool, alone: dict[str, Any], zero_stage: int) -> None:
    """Gathered once a step, with one and two micro-batches; stale weights or a gradient sent twice would part the runs."""
    compare(pool, alone, 4, {"expert_parallel": 2, "zero_stage": zero_stage, "record": False, "move": "weights"})


@pytest.mark.parametrize(("expert_parallel", "table_parallel", "zero_stage"), [(1, 2, 1), (2, 4, 2), (2, 2, 1)])
def test_tables_in_any_layout_equal_one_process(
    pool: Pool, tables_alone: dict[str, Any], expert_parallel: int, table_parallel: int, zero_stage: int
) -> None:
    """Uneven columns, visits recomputed; attention's experts partitioned over as many ranks as the tables, and over fewer."""
    layout = {"expert_parallel": expert_parallel, "table_parallel": table_parallel, "zero_stage": zero_stage}
    sgd = pool.run(4, "layouts_work:train", choices=tables_alone["sgd choices"], record=False, kind="tables", **layout, **SGD)
    losses = [sum(result["losses"][step] for result in sgd) for step in range(SGD["steps"])]
    assert largest_difference(losses, tables_alone["sgd"][0]["losses"]) <= 1e-5
    for result in sgd:
        assert largest_difference(result["norms"], tables_alone["sgd"][0]["norms"]) <= 1e-5
    assert worst(whole(sgd), whole(tables_alone["sgd"])) <= 1e-5


def compare(pool: Pool, alone: dict[str, Any], world: int, layout: dict[str, Any]) -> None:
    adamw = pool.run(world, "layouts_work:train", choices=alone["adamw choices"], **layout, **ADAMW)
    losses = [sum(result["losses"][step] for result in adamw) for step in range(ADAMW["steps"])]
    assert largest_difference(losses, alone["adamw"][0]["losses"]) <= 1e-5
    for result in adamw:
        assert largest_difference(result["norms"], alone["adamw"][0]["norms"]) <= 1e-5
    sgd = pool.run(world, "layouts_work:train", choices=alone["sgd choices"], **layout, **SGD)
    assert worst(whole(sgd), whole(alone["sgd"])) <= 1e-5
