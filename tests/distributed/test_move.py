"""`expert_parallel.move: auto`: one choice on all ranks, kept over starts; the trial disturbs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pool import Pool
from small_run import recipe_values

TOKENS_WIN = [{"tokens": 1.0, "weights": 2.0}, {"tokens": 1.0, "weights": 0.5}]
WEIGHTS_WIN = [{"tokens": 3.0, "weights": 2.0}, {"tokens": 1.0, "weights": 0.5}]


def values(folder: Path, **parallel: Any) -> dict[str, Any]:
    return recipe_values(folder) | {"expert_parallel": {"size": 2, "move": "auto"} | parallel}


def settle(pool: Pool, folder: Path, world: int = 2, **arguments: Any) -> str:
    """What all ranks agreed on."""
    given = {"values": values(folder), "seconds": None} | arguments
    answers = pool.run(world, "move_work:settle", folder=str(folder), **given)
    assert all(random_state_kept for _, random_state_kept in answers)
    (move,) = {move for move, _ in answers}
    return str(move)


@pytest.mark.parametrize(("seconds", "expected"), [(TOKENS_WIN, "tokens"), (WEIGHTS_WIN, "weights")])
def test_the_slowest_rank_decides_for_all(pool: Pool, tmp_path: Path, seconds: Any, expected: str) -> None:
    assert settle(pool, tmp_path, seconds=seconds) == expected


def test_a_later_start_takes_the_same_with_the_same_ranks(pool: Pool, tmp_path: Path) -> None:
    assert settle(pool, tmp_path, seconds=WEIGHTS_WIN) == "weights"
    assert settle(pool, tmp_path, seconds=TOKENS_WIN) == "weights"
    assert settle(pool, tmp_path, world=4, seconds=2 * TOKENS_WIN) == "tokens"


@pytest.mark.parametrize("text", ["", "[]", '{"move": "both"}'])
def test_an_unreadable_choice_is_made_again(pool: Pool, tmp_path: Path, text: str) -> None:
    (tmp_path / "move.json").write_text(text)
    assert settle(pool, tmp_path, seconds=WEIGHTS_WIN) == "weights"
    assert json.loads((tmp_path / "move.json").read_text())["move"] == "weights"


def test_banks_that_would_fill_the_memory_stay(pool: Pool, tmp_path: Path) -> None:
    assert settle(pool, tmp_path, seconds=WEIGHTS_WIN, most_of_memory=0.0) == "tokens"


def test_a_real_trial_takes_the_faster(pool: Pool, tmp_path: Path) -> None:
    move = settle(pool, tmp_path)
    found = json.loads((tmp_path / "move.json").read_text())["seconds_a_step"]
    assert min(found.values()) > 0
    assert found[move] == min(found.values())


def test_nothing_is_tried_where_there_is_no_choice(pool: Pool, tmp_path: Path) -> None:
    alone = values(tmp_path, size=1)
    assert settle(pool, tmp_path, world=1, values=alone) == "tokens"
    assert settle(pool, tmp_path, values=values(tmp_path, move="weights")) == "weights"
    assert not (tmp_path / "move.json").exists()
