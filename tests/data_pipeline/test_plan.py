"""The split and what is taken out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import text_config

from data_pipeline.documents import digest_of_bytes
from data_pipeline.errors import DataError
from data_pipeline.plan import EXACT_DUPLICATE, HELD_OUT, NEAR_DUPLICATE, OVER_BUDGET, TRAIN, held_out_groups, make_plan
from data_pipeline.shingles import NEAR_GRAM, gram_hashes, signature, word_hashes
from data_pipeline.survey import Survey


def survey_of(texts: dict[str, str]) -> Survey:
    """Keys are `group/name`."""
    return Survey(
        list(texts),
        [key.split("/")[0] for key in texts],
        np.array([len(text) for text in texts.values()]),
        np.array([np.frombuffer(digest_of_bytes(text.encode()), np.uint8) for text in texts.values()]).reshape(-1, 16),
        np.array([signature(gram_hashes(word_hashes(text), NEAR_GRAM)) for text in texts.values()]),
    )


def test_groups_are_held_out_whole_and_hold_the_fraction() -> None:
    sizes = {f"package{number}": 50 + number for number in range(200)}
    chosen = held_out_groups(sizes, 0.05, seed=0, source="s")
    share = sum(sizes[group] for group in chosen) / sum(sizes.values())
    assert 0.05 <= share <= 0.075
    assert chosen == held_out_groups(dict(reversed(sizes.items())), 0.05, seed=0, source="s")
    assert chosen != held_out_groups(sizes, 0.05, seed=1, source="s")


def test_a_giant_group_is_not_held_out_and_one_always_trains() -> None:
    assert held_out_groups({"giant": 1000, "small": 10}, 0.02, seed=0, source="s") == {"small"}
    for seed in range(20):
        assert len(held_out_groups({"a": 5, "b": 5}, 0.4, seed=seed, source="s")) == 1


def test_duplicates_across_the_split_leave_the_train_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = {f"g{group}/{name}": " ".join(map(str, rng.integers(0, 9999, 200))) for group in range(10) for name in "abc"}
    config = text_config(tmp_path, held_out_fraction=0.2)
    first = make_plan(config, {"tree": [survey_of(texts)]})["tree"].fate_by_part[0]
    held, trained = list(texts)[np.flatnonzero(first == HELD_OUT)[0]], list(texts)[np.flatnonzero(first == TRAIN)[0]]
    texts[f"{trained.split('/')[0]}/exact"] = texts[held]
    texts[f"{trained.split('/')[0]}/near"] = texts[held] + " one word more"
    plan = make_plan(config, {"tree": [survey_of(dict(list(texts.items())[:7])), survey_of(dict(list(texts.items())[7:]))]})["tree"]
    fates = dict(zip(texts, np.concatenate(plan.fate_by_part), strict=True))
    assert fates[f"{trained.split('/')[0]}/exact"] == EXACT_DUPLICATE
    assert fates[f"{trained.split('/')[0]}/near"] == NEAR_DUPLICATE
    assert fates[held] == HELD_OUT
    groups = [{key.split("/")[0] for key in texts if fates[key] == fate} for fate in (TRAIN, HELD_OUT)]
    assert groups[0] and groups[1] and not groups[0] & groups[1]
    assert [len(part) for part in plan.fate_by_part] == [7, 25]


def test_records_beyond_the_budget_are_left_out(tmp_path: Path) -> None:
    texts = {f"{number}": f"{number:04d} " * 20 for number in range(100)}
    config = text_config(tmp_path, deduplicate=False)
    source = config.sources[0].model_copy(update={"max_megabytes": 0.002})
    plan = make_plan(config.model_copy(update={"sources": [source]}), {"tree": [survey_of(texts)]})["tree"]
    assert plan.count(OVER_BUDGET) == 80 and plan.count(TRAIN) + plan.count(HELD_OUT) == 20


def test_too_little_text_is_an_error(tmp_path: Path) -> None:
    config = text_config(tmp_path)
    with pytest.raises(DataError, match="source 'tree' holds no readable text"):
        make_plan(config, {"tree": []})
    with pytest.raises(DataError, match="has a single folder or file: nothing can be held out"):
        make_plan(config, {"tree": [survey_of({"only/a": "one text", "only/b": "two texts"})]})
    with pytest.raises(DataError, match="no train document is left after duplicates were removed"):
        make_plan(config, {"tree": [survey_of({"a/x": "the same text", "b/y": "the same text"})]})
