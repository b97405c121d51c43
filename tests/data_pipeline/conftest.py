"""Small corpora, and one prepared set that tests only read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.prepare import prepare
from data_pipeline.source_config import SourceConfig


def write_tree(root: Path, folders: int = 8, files: int = 5, words: int = 300, seed: int = 0) -> Path:
    """A tree of text files of random words, `folders` x `files`, no two of them alike."""
    rng = np.random.default_rng(seed)
    vocabulary = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyzäé"), rng.integers(2, 9))) for _ in range(400)]
    for folder in range(folders):
        (root / f"part{folder}").mkdir(parents=True)
        for file in range(files):
            chosen = rng.choice(vocabulary, words)
            lines = [" ".join(chosen[start : start + 12]) + ".\n" for start in range(0, words, 12)]
            (root / f"part{folder}" / f"text{file}.txt").write_text("".join(lines))
    return root


def text_config(root: Path, **changes: object) -> DataConfig:
    """A recipe for one tree of text."""
    values: dict[str, object] = {
        "folder": "unused",
        "sources": [SourceConfig(name="tree", kind="text", path=str(root))],
        "tokenizer": TokenizerConfig(vocab_size=400),
        "seq_len": 32,
        "held_out_fraction": 0.15,
    }
    return DataConfig.model_validate({**values, **changes})


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    """A prepared set of two sources of unlike sizes; do not change it."""
    root = tmp_path_factory.mktemp("corpus")
    big, small = write_tree(root / "big"), write_tree(root / "small", folders=4, files=3, seed=1)
    sources = [SourceConfig(name="big", kind="text", path=str(big)), SourceConfig(name="small", kind="text", path=str(small))]
    config = text_config(big, sources=sources)
    prepare(config, root / "set", workers=0)
    return config, root / "set"
