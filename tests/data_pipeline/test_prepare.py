"""A prepared set: every token is there once, whatever the interruptions and the workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import text_config, write_tree

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.manifest import SPLITS, Split, check
from data_pipeline.prepare import prepare
from data_pipeline.shards import windows_a_shard
from data_pipeline.source_config import HeldOutConfig, SourceConfig
from data_pipeline.sources import list_parts, read_part
from data_pipeline.tokenizer import END_TOKEN, load_tokenizer
from data_pipeline.windows import Windows

# Prints each stage and dies without cleaning up at the first sign of the stage named.
DIES_AT = """
import os, sys
from pathlib import Path
from data_pipeline.config import DataConfig
from data_pipeline.prepare import prepare

def progress(stage, done, total):
    if stage == sys.argv[3] and done == min(1, total - 1):
        os.kill(os.getpid(), 9)

prepare(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), progress, workers=0)
"""


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stream(folder: Path, split: Split, source: str) -> np.ndarray:
    """The tokens of a split, put together from its windows."""
    windows = Windows(folder, split, source)
    rows = windows.read_ragged(windows.ids)
    assert all(before[-1] == after[0] for before, after in pairwise(rows))
    return np.concatenate([rows[0][:1], *[row[1:] for row in rows]])


def test_windows_are_the_documents_of_the_source(two_sources: tuple[DataConfig, Path]) -> None:
    config, folder = two_sources
    manifest = check(folder, config)
    tokenizer = load_tokenizer(folder)
    for source in config.sources:
        texts = {document.text for part in list_parts(source, 0) for document in read_part(source, part)}
        splits: dict[Split, np.ndarray] = {split: stream(folder, split, source.name) for split in SPLITS}
        tokens = manifest.sources[source.name].splits
        assert len(splits["held_out"]) == tokens["held_out"].tokens
        assert 0 <= tokens["train"].tokens - len(splits["train"]) < config.seq_len
        found = [text for ids in splits.values() for text in tokenizer.decode(ids).split(END_TOKEN)]
        whole = [text for text in found if text in texts]
        assert len(whole) == len(set(whole)) >= len(texts) - 1
        assert manifest.sources[source.name].documents == len(texts)


def test_no_folder_is_in_both_splits(two_sources: tuple[DataConfig, Path]) -> None:
    config, folder = two_sources
    tokenizer = load_tokenizer(folder)
    source = config.sources[0]
    group = {document.text: document.group for part in list_parts(source, 0) for document in read_part(source, part)}
    texts = [tokenizer.decode(stream(folder, split, "big")).split(END_TOKEN) for split in SPLITS]
    groups = [{group[text] for text in split if text in group} for split in texts]
    assert len(groups[0]) > len(groups[1]) >= 1 and not groups[0] & groups[1]


def test_overlap_is_measured_against_every_train_split(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", folders=6, files=2, words=200)
    config = text_config(root)
    manifest = prepare(config, tmp_path / "first", workers=0)
    assert manifest.overlap == 0.0
    held = load_tokenizer(tmp_path / "first").decode(stream(tmp_path / "first", "held_out", "tree")).split(END_TOKEN)[0]
    words = held.split()
    other = write_tree(tmp_path / "other", folders=6, files=2, words=200, seed=1)
    for path in other.rglob("*.txt"):
        path.write_text(path.read_text() + " ".join(words[: len(words) // 2]))
    both = config.model_copy(update={"sources": [*config.sources, SourceConfig(name="other", kind="text", path=str(other))]})
    manifest = prepare(both, tmp_path / "second", workers=0)
    documents = manifest.sources["tree"].splits["held_out"].documents
    assert manifest.sources["tree"].overlap == pytest.approx(0.5 / documents, abs=0.05)


@pytest.mark.parametrize("stage", ["survey", "tokenizer", "tokenize"])
def test_a_killed_prepare_goes_on_and_gives_equal_bytes(stage: str, tmp_path: Path, undisturbed: tuple[DataConfig, Path]) -> None:
    config, whole = undisturbed
    command = [sys.executable, "-c", DIES_AT, config.model_dump_json(), str(tmp_path / "set"), stage]
    root = Path(__file__).resolve().parents[2]
    died = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, cwd=tmp_path)
    assert died.returncode == -signal.SIGKILL
    goes_on(config, tmp_path / "set", whole, stage)


def test_an_error_between_two_shards_leaves_the_first(tmp_path: Path, undisturbed: tuple[DataConfig, Path]) -> None:
    config, whole = undisturbed

    def fail(stage: str, done: int, total: int) -> None:
        if stage == "shards" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, tmp_path / "set", fail, workers=0)
    goes_on(config, tmp_path / "set", whole, "shards")


def goes_on(config: DataConfig, folder: Path, whole: Path, stage: str) -> None:
    """The set is made from what an interrupted prepare left, none of which is done again."""
    assert not folder.exists()
    begun: dict[str, int] = {}
    prepare(config, folder, lambda name, done, total: begun.setdefault(name, done) and None, workers=0)
    assert content(folder) == content(whole)
    stages = ["survey", "tokenizer", "tokenize", "shards"]
    finished = stages[: stages.index(stage)]
    assert all(begun[name] == {"survey": 3, "tokenizer": 1, "tokenize": 3}[name] for name in finished)
    assert begun[stage] == (0 if stage == "tokenizer" else 1)
    assert [path.name for path in sorted(folder.parent.iterdir())] == [".set.lock", "set"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    """Several parts (one a jsonl file), so that a kill comes between two of them."""
    root = tmp_path_factory.mktemp("undisturbed")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(300)]
    for file in range(3):
        lines = [f'{{"text": "{" ".join(rng.choice(words, 60))}"}}\n' for _ in range(40)]
        (root / f"records{file}.jsonl").write_text("".join(lines))
    config = text_config(root, sources=[SourceConfig(name="tree", kind="jsonl", path=str(root))])
    prepare(config, root / "set", workers=0)
    return config, root / "set"


@pytest.mark.ray
def test_ray_tasks_give_equal_bytes(tmp_path: Path, undisturbed: tuple[DataConfig, Path]) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    config, whole = undisturbed
    prepare(config, tmp_path / "set", workers=2)
    assert not ray.is_initialized()
    assert content(tmp_path / "set") == content(whole)


def test_shards_are_cut_at_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[DataConfig, Path]) -> None:
    config, whole = undisturbed
    monkeypatch.setattr("data_pipeline.shards.SHARD_BYTES", 7 * 66)
    assert windows_a_shard(32, 2) == 7
    prepare(config, tmp_path / "set", workers=0)
    assert len(list((tmp_path / "set" / "tree" / "train").glob("*.mds"))) > 10
    for split in SPLITS:
        assert np.array_equal(stream(tmp_path / "set", split, "tree"), stream(whole, split, "tree"))


def test_a_prepared_folder_is_kept_and_another_recipe_refused(tmp_path: Path, undisturbed: tuple[DataConfig, Path]) -> None:
    config, whole = undisturbed
    before = content(whole)
    prepare(config, whole, lambda *_: pytest.fail("nothing is left to do"), workers=0)
    with pytest.raises(DataError, match=r"data.seq_len is 64 but the shards in .* are cut for 32"):
        prepare(config.model_copy(update={"seq_len": 64}), whole, workers=0)
    assert content(whole) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(DataError, match=r"data.folder .*mine holds other files; set data.folder to a new or an empty folder"):
        prepare(config, tmp_path / "mine", workers=0)
    assert content(tmp_path / "mine") == {"thesis.txt": b"do not touch"}


def test_sentencepiece_and_file_tokenizers_prepare(tmp_path: Path, undisturbed: tuple[DataConfig, Path]) -> None:
    config, whole = undisturbed
    paper = config.model_copy(update={"tokenizer": TokenizerConfig(kind="sentencepiece_bpe", vocab_size=300)})
    manifest = prepare(paper, tmp_path / "paper", workers=0)
    assert manifest.tokenizer.end_of_document is None and manifest.tokenizer.document_end == "story_sep"
    text = load_tokenizer(tmp_path / "paper").decode(stream(tmp_path / "paper", "held_out", "tree"))
    assert text.count("<STORY_SEP>") == manifest.sources["tree"].splits["held_out"].documents
    given = config.model_copy(update={"tokenizer": TokenizerConfig(kind="file", path=str(whole / "tokenizer.json"))})
    prepare(given, tmp_path / "given", workers=0)
    assert np.array_equal(stream(tmp_path / "given", "train", "tree"), stream(whole, "train", "tree"))


def test_faults_come_before_the_work(tmp_path: Path, undisturbed: tuple[DataConfig, Path]) -> None:
    config, _ = undisturbed
    missing = config.model_copy(update={"tokenizer": TokenizerConfig(kind="file", path=str(tmp_path / "no.json"))})
    with pytest.raises(DataError, match=r"no.json does not exist"):
        prepare(missing, tmp_path / "a", lambda *_: pytest.fail("work began"), workers=0)
    with pytest.raises(DataError, match=r"source 'tree': \d+ train tokens do not fill a window of data.seq_len 1000000; give it more text"):
        prepare(config.model_copy(update={"seq_len": 10**6}), tmp_path / "b", workers=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.folder .*file/set cannot be prepared: .*set data.folder to a writable place"):
        prepare(config, tmp_path / "file" / "set", workers=0)


def test_a_publisher_s_held_out_documents_are_taken_and_no_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def texts(count: int, words: int) -> list[str]:
        return [" ".join(map(str, rng.integers(0, 9999, words))) for _ in range(count)]

    trained, held = texts(30, 60), texts(4, 60)
    for name, documents in (("train", trained), ("validation", held)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    source = SourceConfig(
        name="s", kind="jsonl", path=str(tmp_path / "train.jsonl"), held_out=HeldOutConfig(path=str(tmp_path / "validation.jsonl"))
    )
    manifest = prepare(text_config(tmp_path, sources=[source]), tmp_path / "set", workers=0)
    splits = manifest.sources["s"].splits
    assert (splits["train"].documents, splits["held_out"].documents) == (30, 4)
    assert splits["held_out"].text_bytes == sum(len(text) for text in held)
    small = source.model_copy(update={"max_megabytes": 0.002})
    splits = prepare(text_config(tmp_path, sources=[small]), tmp_path / "small", workers=0).sources["s"].splits
    assert splits["train"].text_bytes <= 2000 and splits["held_out"].documents == 4
    (tmp_path / "validation.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match=r"held_out holds no document; check held_out\.path, split and files"):
        prepare(text_config(tmp_path, sources=[source]), tmp_path / "empty", workers=0)
