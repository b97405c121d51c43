"""`expert_parallel.move: auto`: one choice on all ranks, kept over starts; the trial disturbs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pool import Pool
from small_run import recipe_values

from distributed.move import VISITS, load_of, run_micro_batch, trial_layer
from distributed.recipe_file import check_recipe
from distributed.topology import Topology
from model.exchange import LocalExchange

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


@pytest.mark.parametrize("balance", [{"kind": "entropy", "scope": "sequence"}, {"kind": "switch", "scope": "step"}])
def test_a_forward_that_comes_before_the_step_is_tried_too(tmp_path: Path, balance: dict[str, str]) -> None:
    experts = {"kind": "switch", "n_experts": 6, "d_expert": 8, "top_k": 2, "balance": balance}
    model = recipe_values(tmp_path)["model"] | {"feed_forward": experts}
    recipe = check_recipe(values(tmp_path) | {"model": model}, "test")
    alone = Topology(0, 1, 0, 1, torch.device("cpu"), "none", None, None, None)
    load = load_of(recipe, replace(alone, world=2))
    assert load.looks_ahead == (balance["scope"] == "step")
    layer, x_1TD = trial_layer(LocalExchange(), alone, load)
    calls: list[bool] = []
    layer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    run_micro_batch(layer, x_1TD, alone, last=True, looks_ahead=load.looks_ahead)
    assert calls == ([False] * VISITS if load.looks_ahead else []) + [True] * VISITS


def test_layers_without_experts_count_for_nothing(tmp_path: Path) -> None:
    """Of a dense layer, two routed ones three times and a dense one: 2 layers and 6 visits; banks of 2 matrices, 6 experts, 8 by 16."""
    dense = {"kind": "dense", "d_ff": 8}
    experts = {"kind": "sigma_moe", "n_experts": 6, "d_expert": 8, "top_k": 2}
    depth = {"prelude": 1, "group": 2, "repeats": 3, "coda": 1}
    changes = {"d_model": 16, "depth": depth, "feed_forward": experts, "feed_forward_at": {0: dense, 3: dense}}
    model = recipe_values(tmp_path)["model"] | changes
    recipe = check_recipe(values(tmp_path) | {"model": model}, "test")
    load = load_of(recipe, Topology(0, 2, 0, 1, torch.device("cpu"), "none", None, None, None))
    assert (load.layers, load.visits) == (2, 6)
    assert replace(load, micro_batches=1, dtype=torch.float32).gathered_bytes() == 2 * 2 * 6 * 8 * 16 * 8


def test_nothing_is_tried_where_there_is_no_choice(pool: Pool, tmp_path: Path) -> None:
    alone = values(tmp_path, size=1)
    assert settle(pool, tmp_path, world=1, values=alone) == "tokens"
    assert settle(pool, tmp_path, values=values(tmp_path, move="weights")) == "weights"
    assert not (tmp_path / "move.json").exists()
