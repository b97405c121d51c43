"""Balance in whole runs: biases are saved and come back, and a step-wide regulariser makes micro-batches a matter of memory only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pool import Pool
from small_run import recipe_values, write_corpus
from test_trainer import run, state
from trainer_work import losses

from distributed.checkpoint import checkpoint_path, read_manifest
from distributed.errors import RunError
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder
from distributed.trained import load_trained
from distributed.world_rules import check_same_world
from model.slot_router import SlotRouter

PEER = {"kind": "peer", "n_keys": 4, "d_key": 4, "top_k": 4, "query_norm": "batch"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder)
    return folder


def values(home: Path, name: str, balance: dict[str, Any], **train: Any) -> dict[str, Any]:
    recipe = recipe_values(home, **{"steps": 4, "engine": "plain", "precision": "fp64", **train})
    recipe["model"]["feed_forward"] |= {"balance": balance}
    return recipe | {"name": name, "expert_parallel": {"size": 1}}


def biases(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    monkeypatch.setenv("MOOTRON_HOME", str(home))
    model = load_trained(RunFolder.existing(name)).model
    return [module.bias_steps.tolist() for module in model.modules() if isinstance(module, SlotRouter)]


def test_biases_are_saved_and_a_resumed_run_has_equal_bits(home: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    bias = {"kind": "bias", "rate": 0.002}
    assert run(pool, home, values(home, "biased", bias), None, ranks=1) == ["finished"]
    assert run(pool, home, values(home, "biased_stopped", bias), 2, ranks=1) == ["stopped"]
    assert run(pool, home, values(home, "biased_stopped", bias), None, resume=True, ranks=1) == ["finished"]
    assert state(home, "biased_stopped", 4) == state(home, "biased", 4)
    assert losses(str(home), "biased_stopped") == losses(str(home), "biased")
    found = biases(home, "biased", monkeypatch)
    assert found == biases(home, "biased_stopped", monkeypatch)
    assert len(found) == 2 and all(2 <= max(map(abs, layer)) <= 4 for layer in found)
    assert list(read_manifest(checkpoint_path(home / "runs" / "biased" / "checkpoints", 4)).buffers) == [
        f"layers.{layer}.feed_forward.router.bias_steps" for layer in range(2)
    ]


def test_ranks_and_micro_batches_do_not_change_biases(home: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks by DeepSpeed that begin, one that goes on; counts are exact, so they part only where a choice does."""
    bias = {"kind": "bias", "rate": 0.002}
    alone = values(home, "alone", bias, micro_batch=8, precision="fp32", steps=2)
    shared = values(home, "shared", bias, engine="auto", precision="fp32", steps=2) | {"expert_parallel": {"size": 2}}
    assert run(pool, home, alone, None, ranks=1) == ["finished"]
    assert run(pool, home, shared, 1, ranks=2) == ["stopped"] * 2
    assert run(pool, home, shared | {"expert_parallel": {"size": 1}}, None, resume=True, ranks=1) == ["finished"]
    assert biases(home, "alone", monkeypatch) == biases(home, "shared", monkeypatch)


def run_losses(home: Path, pool: Pool, name: str, balance: dict[str, Any], weight: float, **train: Any) -> torch.Tensor:
    """Of three steps; with dropout where the regulariser weighs next to nothing."""
    dropout = 0.2 if weight < 1e-9 else 0.0
    recipe = values(home, name, balance, steps=3, **train)
    recipe["model"]["feed_forward"] |= {"balance_weight": weight, "expert_dropout": dropout}
    recipe["model"]["dropout"] = dropout
    assert run(pool, home, recipe, None, ranks=1) == ["finished"]
    return torch.tensor(list(losses(str(home), name).values()), dtype=torch.float64)


def test_of_a_step_wide_regulariser_micro_batches_change_nothing(home: Path, pool: Pool) -> None:
    at_once, in_four = (run_losses(home, pool, f"mim_{size}", {"kind": "mim"}, 0.5, micro_batch=size) for size in (8, 2))
    assert ((at_once - in_four).abs() / at_once).max() <= 1e-12


def test_looking_ahead_draws_nothing_anew(home: Path, pool: Pool) -> None:
    """With dropout of outputs and of experts and a regulariser that weighs nothing, the first forward must leave no trace."""
    looking, not_looking = (
        run_losses(home, pool, f"drawn_{scope}", {"kind": "entropy", "scope": scope}, 1e-30) for scope in ("step", "sequence")
    )
    assert torch.equal(looking, not_looking)


@pytest.mark.parametrize(
    ("slot", "named"),
    [
        ({"balance": {"kind": "switch", "scope": "micro_batch"}}, "balance.scope"),
        ({"kind": "s_base"}, "choice_scope"),
        (PEER, "query_norm"),
    ],
)
def test_statistics_of_a_micro_batch_are_refused_where_workers_may_change(home: Path, slot: dict[str, Any], named: str) -> None:
    recipe = recipe_values(home)
    recipe["model"]["feed_forward"] = slot if slot is PEER else recipe["model"]["feed_forward"] | slot
    with pytest.raises(RunError, match=rf"model.feed_forward.{named}: a statistic.*router.allow_micro_batch_scope=true"):
        check_recipe(recipe, "test")
    assert check_recipe(recipe | {"router": {"allow_micro_batch_scope": True}}, "test")
    fixed = check_recipe(recipe | {"cluster": {"workers": 2, "min_workers": 2}}, "test")
    check_same_world(fixed, before=2, now=2)
    with pytest.raises(RunError, match=r"had 2 workers and now has 3.*set cluster.workers=2"):
        check_same_world(fixed, before=2, now=3)
    check_same_world(check_recipe(recipe_values(home), "test"), before=2, now=3)
