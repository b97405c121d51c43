"""Memory of weights, gradients and optimizer state, against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import torch

from distributed.recipe_file import load_recipe
from distributed.state_memory import StateBytes, state_bytes
from model.accounting import stored_parameters

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "paper" / "moeut_44m.yaml"
BANKS = 2 * 2 * 155 * 412 * 128  # two layers, up and down


def test_one_plain_process_holds_everything_once() -> None:
    recipe = load_recipe(RECIPE, ["train.engine=plain"])
    n = stored_parameters(recipe.model)
    assert state_bytes(recipe, 1, torch.float32) == StateBytes(4 * n, 4 * n, 0, 8 * n)
    assert state_bytes(recipe, 1, torch.bfloat16) == StateBytes(2 * n, 4 * n, 4 * n, 8 * n)


def test_experts_are_divided_by_their_group_and_state_by_those_that_share_it() -> None:
    recipe = load_recipe(RECIPE, ["expert_parallel.size=2", "train.engine=deepspeed"])
    rest = stored_parameters(recipe.model) - BANKS
    mine = BANKS // 155 * 78  # 77 and 78 experts
    shard = -(-rest // 4) + -(-mine * 2 // 4)
    assert state_bytes(recipe, 4, torch.bfloat16) == StateBytes(2 * (rest + mine), 4 * (rest + mine), 4 * shard, 8 * shard)
    stage_two = load_recipe(RECIPE, ["expert_parallel.size=2", "train.engine=deepspeed", "train.zero_stage=2"])
    assert state_bytes(stage_two, 4, torch.bfloat16).gradients == 4 * shard


def test_tables_are_divided_by_their_group() -> None:
    peer = "{kind: peer, n_keys: 100, d_key: 64, heads: 2, top_k: 4}"
    recipe = load_recipe(RECIPE, [f"model.feed_forward={peer}", "table_parallel.size=4", "train.engine=deepspeed"])
    tables = 2 * 2 * 100**2
    rest, mine = stored_parameters(recipe.model) - tables * 412, tables * 103
    shard = -(-rest // 8) + 2 * 2 * -(-(100**2 * 103 * 4) // 8)
    assert state_bytes(recipe, 8, torch.bfloat16) == StateBytes(2 * (rest + mine), 4 * (rest + mine), 4 * shard, 8 * shard)
