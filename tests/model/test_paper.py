"""The recipes in configs/paper build the models that `model.paper` names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model.config import ModelConfig
from model.paper import DENSE_PEERS, PAPER

RECIPES = Path(__file__).parents[2] / "configs" / "paper"
MODELS = {
    f"{kind}_{size.lower()}": config for kind, models in (("moeut", PAPER), ("dense", DENSE_PEERS)) for size, config in models.items()
}


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_builds_the_paper_s_model(name: str) -> None:
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert ModelConfig.model_validate(recipe["model"]) == MODELS[name]
