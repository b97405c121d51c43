"""A damaged shard of data in a whole small run: it ends the run by name, or the other samples go on where that is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pool import Pool, WorkerError
from small_run import recipe_values, write_corpus

from data_pipeline.windows import Windows
from distributed.run_folder import RunFolder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data set with one bit flipped in the tokens of one window."""
    write_corpus(tmp_path)
    shard = tmp_path / "corpora/small/words/train/shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    return tmp_path


def values(home: Path, name: str, **data: Any) -> dict[str, Any]:
    recipe = recipe_values(home) | {"name": name}
    recipe["train"]["steps"] = len(Windows(home / "corpora/small", "train")) // recipe["train"]["global_batch"]
    recipe["data"] |= {"loader_workers": 0, **data}
    return recipe


def test_a_damaged_window_ends_the_run_and_names_the_shard(home: Path, pool: Pool) -> None:
    with pytest.raises(WorkerError, match=r"DataError: shard .*words/train/shard.00000.mds is damaged: window \d+ has other tokens"):
        pool.run(2, "elastic_work:train", home=str(home), values=values(home, "stops"), expert_parallel=2, attempt=0, timeout=100)


def test_with_leave_to_skip_the_others_go_on_and_it_is_counted(home: Path, pool: Pool) -> None:
    recipe = values(home, "skips", on_damage="skip")
    assert pool.run(2, "elastic_work:train", home=str(home), values=recipe, expert_parallel=2, attempt=0, timeout=100) == ["finished"] * 2
    run = RunFolder(home / "runs" / "skips")
    (note,) = [json.loads(line) for line in (run.path / "damaged_windows.jsonl").read_text().splitlines()]
    assert "shard.00000.mds is damaged" in note["fault"] and note["window"] == len(Windows(home / "corpora/small", "train")) - 1
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    counted = {line["step"]: line["damaged_windows"] for line in lines if "loss" in line}
    assert counted == {step: int(step == note["step"]) for step in counted}
    seen = [json.loads(line) for path in home.glob("ids-skips-*.jsonl") for line in path.read_text().splitlines()]
    assert sum(len(ids) for _, ids in seen) == 8 * recipe["train"]["steps"] - 1


def test_a_truncated_shard_loses_the_windows_that_are_gone_and_no_others(home: Path, pool: Pool) -> None:
    shard = home / "corpora/small/words/train/shard.00000.mds"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) * 3 // 4])
    recipe = values(home, "cut", on_damage="skip")
    assert pool.run(2, "elastic_work:train", home=str(home), values=recipe, expert_parallel=2, attempt=0, timeout=100) == ["finished"] * 2
    notes = [json.loads(line) for line in (home / "runs/cut/damaged_windows.jsonl").read_text().splitlines()]
    windows = len(Windows(home / "corpora/small", "train"))
    lost = {note["window"] for note in notes}
    seen = {window for path in home.glob("ids-cut-*.jsonl") for line in path.read_text().splitlines() for window in json.loads(line)[1]}
    assert len(lost | seen) == 8 * recipe["train"]["steps"] and max(seen) < min(lost), "all that lie behind the cut, and no others"
    assert 0.2 * windows < len(lost) < 0.3 * windows
