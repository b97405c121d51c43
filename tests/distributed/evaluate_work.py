"""A small model and windows of unequal lengths, for test_evaluate.py; also runs in the pool's workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distributed.build import build_exchange
from distributed.expert_use import ExpertUse
from distributed.held_out import Scoring, held_out_loss
from distributed.recipe import Recipe
from distributed.recipe_file import check_recipe
from distributed.reduction import sum_over_ranks
from distributed.topology import Topology, init_topology
from model.moeut import MoEUT

VOCABULARY = 19
N_WINDOWS = 11


class ListedWindows:
    """Windows that lie in memory; ids start at 100, as those of a second source would. The last one is ragged by default."""

    def __init__(self, rows: Sequence[Sequence[int]] | None = None) -> None:
        random = np.random.default_rng(0)
        lengths = [9] * (N_WINDOWS - 1) + [4]
        drawn = [random.integers(0, VOCABULARY, length) for length in lengths]
        self.rows = drawn if rows is None else [np.array(row) for row in rows]
        self.ids = range(100, 100 + len(self.rows))

    def read_ragged(self, ids: Sequence[int]) -> list[np.ndarray]:
        """Rows by id."""
        return [self.rows[self.ids.index(number)] for number in ids]


def recipe(expert_parallel: int = 1) -> Recipe:
    """Dropout everywhere, which evaluation must switch off."""
    return check_recipe(
        {
            "name": "small",
            "model": {
                "vocab_size": VOCABULARY,
                "d_model": 8,
                "depth": {"group": 1, "repeats": 2},
                "attention": {"kind": "switchhead", "n_heads": 2, "d_head": 4, "n_experts": 3},
                "feed_forward": {"kind": "sigma_moe", "n_experts": 5, "d_expert": 4, "top_k": 2, "expert_dropout": 0.2},
                "dropout": 0.1,
            },
            "data": {
                "folder": "corpora/small",
                "sources": [{"name": "python", "kind": "installed_python"}],
                "tokenizer": {"kind": "file", "path": "tokenizer.json"},
            },
            "train": {"steps": 2, "global_batch": 4, "micro_batch": 2, "precision": "fp64"},
            "expert_parallel": {"size": expert_parallel},
        },
        "test",
    )


def model_for(topology: Topology) -> MoEUT:
    """The same weights in every layout, float64, in training mode."""
    exchange = build_exchange(recipe(topology.expert_parallel), topology)
    model = MoEUT(recipe().model, exchange).double()
    model.init_parameters(3)
    return model.train()


def score_rank(expert_parallel: int, batch: int, max_windows: int | None) -> dict[str, Any]:
    """One rank of a world that a launcher made."""
    topology = init_topology(expert_parallel, device="cpu", timeout_seconds=30, use_deepspeed=False)
    return held_out_loss(model_for(topology), ListedWindows(), Scoring(batch, max_windows), torch.device("cpu"), topology)


def use_rank(expert_parallel: int, batch: int) -> dict[str, Any]:
    """One rank of a world that counts the use of experts."""
    topology = init_topology(expert_parallel, device="cpu", timeout_seconds=30, use_deepspeed=False)
    use = ExpertUse(recipe().model, torch.device("cpu"))
    held_out_loss(model_for(topology), ListedWindows(), Scoring(batch, use=use), torch.device("cpu"), topology)
    return use.figures(sum_over_ranks(use.sums(), topology, "use"))
