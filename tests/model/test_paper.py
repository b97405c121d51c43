"""The recipes in configs/paper build the models that `model.paper` names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model.config import ModelConfig
from model.paper import DENSE_PEERS, PAPER, SIGMA_MOE

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = CONFIGS / "paper"
MODELS = {
    f"{kind}_{size.lower()}": config for kind, models in (("moeut", PAPER), ("dense", DENSE_PEERS)) for size, config in models.items()
}


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_builds_the_paper_s_model(name: str) -> None:
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert ModelConfig.model_validate(recipe["model"]) == MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_trains_by_the_paper_s_protocol(name: str) -> None:
    """Its 100k steps of 64 x 1,024 tokens, rate, decay and clip; 44M has its own clip and no warm-up. Table 1 counts 1,008 windows."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    train, smallest = recipe["train"], name.endswith("_44m")
    assert (train["steps"], train["global_batch"], recipe["data"]["seq_len"]) == (100_000, 64, 1024)
    assert (train["lr"], train["betas"], train["weight_decay"], train["clip"]) == (2.5e-4, [0.9, 0.999], 0.01, 0.1 if smallest else 0.25)
    warmup = 0 if smallest else 4000
    assert train["schedule"] == {"kind": "cosine", "warmup_steps": warmup, "decay_steps": 100_000, "final_fraction": 0.1}
    assert recipe["validation"]["windows"] == 1008 and recipe["data"]["order"] == "streams"
    assert recipe["data"]["tokenizer"]["kind"] == "sentencepiece_bpe" and recipe["data"]["tokenizer"]["vocab_size"] == 8000


@pytest.mark.parametrize(("name", "models"), [("moeut", PAPER), ("dense", DENSE_PEERS), ("sigma_moe", SIGMA_MOE)])
def test_the_gpu_comparison_has_the_paper_s_models(name: str, models: dict[str, ModelConfig]) -> None:
    recipe = yaml.safe_load((CONFIGS / "compare" / "gpu" / f"{name}.yaml").read_text())
    assert ModelConfig.model_validate(recipe["model"]) == models["44M"]


@pytest.mark.parametrize("path", ["small/sigma_moe", "groups/group_all"])
def test_what_shares_nothing_gates_values_and_outputs_as_published(path: str) -> None:
    attention = yaml.safe_load((CONFIGS / "compare" / f"{path}.yaml").read_text())["model"]["attention"]
    assert attention["single_expert"] == "gated_expert"
