"""A dry run changes what makes a run long and nothing of its model, windows or optimizer."""

from __future__ import annotations

import pytest

from cluster.dry_run import expected, shortened
from cluster.recipes import CONFIGS
from distributed.recipe_file import load_recipe

RECIPES = sorted(path.stem for path in (CONFIGS / "paper").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_is_the_recipe_but_for_its_length(name: str) -> None:
    path = CONFIGS / "paper" / f"{name}.yaml"
    recipe = load_recipe(path)
    small = load_recipe(path, shortened(recipe, 3, workers=2))
    assert small.model == recipe.model and small.name == f"dry-run-{name}"
    assert (small.data.seq_len, small.data.order, small.data.tokenizer.vocab_size) == (1024, "streams", 8000)
    assert (small.data.sources[0].kind, small.data.sources[0].held_out) == ("installed_python", None)
    assert (small.train.steps, small.train.global_batch, small.train.lr) == (3, 2 * recipe.train.micro_batch, recipe.train.lr)
    assert expected(recipe, 2).row_count == 4
