"""Any layout into any other and back: the logical tensors of a checkpoint keep every byte."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pool import Pool
from test_checkpoint import logical

# (world, expert parallelism, how it trains). Experts never divide evenly; of three experts over four, rank 0 has none.
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "A": (2, 2, {"zero_stage": 1}),
    "B": (3, 3, {"zero_stage": 2}),
    "C": (1, 1, {"engine": "plain"}),
    "D": (4, 2, {"zero_stage": 1}),
    "E": (2, 1, {"zero_stage": 2}),
    "F": (4, 4, {"zero_stage": 1}),
}


def walk(pool: Pool, home: Path, way: str, n_experts: int) -> None:
    """Train in the first layout of `way`, then load and save in one after another; all checkpoints hold the same bytes."""
    world, expert_parallel, train = LAYOUTS[way[0]]
    arguments: dict[str, Any] = {"expert_parallel": expert_parallel, "n_experts": n_experts, **train}
    pool.run(world, "checkpoint_work:train_and_save", folder=str(home / "0"), **arguments)
    first = logical(home / "0" / "step-00000003")
    assert all(tensor.any() for name, tensor in first.items() if "unread" not in name), "a moment is all zeros"
    for number, name in enumerate(way[1:]):
        world, expert_parallel, train = LAYOUTS[name]
        arguments = {"expert_parallel": expert_parallel, "n_experts": n_experts, **train}
        source, copy = str(home / str(number)), str(home / str(number + 1))
        results = pool.run(world, "checkpoint_work:load_and_save", source=source, copy=copy, **arguments)
        after = logical(Path(copy) / "step-00000003")
        assert after.keys() == first.keys()
        assert all(torch.equal(after[key], first[key]) for key in first), (way[: number + 2], n_experts)
        assert all(result["applied"] == 3 for result in results)
        weights = torch.cat([result["weights"]["bank_EDD"].flatten() for result in results[:expert_parallel]])
        assert torch.equal(weights, first["master", "bank_EDD"])
        assert all(torch.equal(result["weights"]["out.weight"].flatten(), first["master", "out.weight"]) for result in results)


def test_there_and_back_over_six_pairs_of_layouts(pool: Pool, tmp_path: Path) -> None:
    """Seven experts over one, two, three and four ranks."""
    way = "ABACADADEDFDFBF"
    there_and_back = {frozenset((left, right)) for (left, right), (_, back) in pairwise(pairwise(way)) if left == back}
    assert len(there_and_back) >= 6
    walk(pool, tmp_path, way, n_experts=7)


def test_a_rank_without_an_expert(pool: Pool, tmp_path: Path) -> None:
    walk(pool, tmp_path, "DFB", n_experts=3)


def test_tables_cut_over_one_two_four_ranks_and_back(pool: Pool, tmp_path: Path) -> None:
    """Uneven columns, beside attention's experts partitioned over other numbers of ranks."""
    pool.run(1, "checkpoint_work:draw_and_save", folder=str(tmp_path / "0"), expert_parallel=1, engine="plain")
    first = logical(tmp_path / "0" / "step-00000003")
    layouts = [(2, 1, 2, {"zero_stage": 1}), (4, 2, 4, {"zero_stage": 2}), (1, 1, 1, {"engine": "plain"})]
    for number, (world, expert_parallel, table_parallel, train) in enumerate(layouts):
        source, copy = str(tmp_path / str(number)), str(tmp_path / str(number + 1))
        layout = {"expert_parallel": expert_parallel, "table_parallel": table_parallel, **train}
        results = pool.run(world, "checkpoint_work:load_and_save", source=source, copy=copy, **layout)
        after = logical(Path(copy) / "step-00000003")
        assert after.keys() == first.keys() and all(torch.equal(after[key], first[key]) for key in first), layout
        for result in results:
            for name, box in result["boxes"].items():
                assert torch.equal(result["weights"][name], first["master", name].view(box.global_shape)[box.index]), name
