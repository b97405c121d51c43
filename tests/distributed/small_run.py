"""A whole small run: a few hundred windows of text, a MoEUT with an odd number of experts, accumulation 2."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from data_pipeline.prepare import prepare
from distributed.recipe_file import check_recipe

WORDS = ["expert", "token", "router", "visit", "layer", "group", "repeat", "gate", "head", "value", "output", "query", "key", "bank"]


def recipe_values(home: Path, **train: Any) -> dict[str, Any]:
    """Plain values of the recipe; the corpus lies below `home`."""
    return {
        "name": "small",
        "seed": 3,
        "model": {
            "vocab_size": 300,
            "d_model": 16,
            "depth": {"group": 2, "repeats": 2},
            "attention": {"kind": "switchhead", "n_heads": 2, "d_head": 8, "n_experts": 3, "top_k": 2},
            "feed_forward": {"kind": "sigma_moe", "n_experts": 7, "d_expert": 8, "top_k": 3},
        },
        "data": {
            "folder": "corpora/small",
            "sources": [{"name": "words", "kind": "text", "path": str(home / "texts")}],
            "tokenizer": {"kind": "byte_bpe", "vocab_size": 300},
            "seq_len": 16,
            "held_out_fraction": 0.1,
            "deduplicate": False,
            "loader_workers": 1,
        },
        "train": {"steps": 12, "global_batch": 8, "micro_batch": 2, "lr": 1e-2, "precision": "fp32", **train},
        "expert_parallel": {"size": 2},
        "checkpoint": {"every": 100, "keep_last": 9},
        "validation": {"every": 100, "windows": 8},
        "logging": {"every": 1, "heat_maps_every": 8},
    }


def write_corpus(home: Path) -> None:
    """Texts of random words, prepared in this process; about four steps of eight windows an epoch."""
    draw = random.Random(0)
    for folder in range(10):
        place = home / "texts" / f"part{folder}"
        place.mkdir(parents=True)
        (place / "text.txt").write_text(" ".join(draw.choices(WORDS, k=120)) + "\n")
    recipe = check_recipe(recipe_values(home), "small")
    prepare(recipe.data, home / recipe.data.folder, workers=0)
