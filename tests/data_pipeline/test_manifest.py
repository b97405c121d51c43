"""Each fault of a prepared set has its own message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST, check, load_manifest


@pytest.fixture
def copied(two_sources: tuple[DataConfig, Path], tmp_path: Path) -> tuple[DataConfig, Path]:
    """A prepared set that a test may damage."""
    config, folder = two_sources
    shutil.copytree(folder, tmp_path / "set")
    return config, tmp_path / "set"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_a_whole_set_passes(two_sources: tuple[DataConfig, Path]) -> None:
    config, folder = two_sources
    manifest = check(folder, config, verify=True)
    assert manifest == load_manifest(folder)
    assert list(manifest.windows("train")) == ["big", "small"]
    proportions = [source.model_copy(update={"proportion": 7.0}) for source in config.sources]
    streamed = {"sources": proportions, "document_mask": True, "folder": "elsewhere", "loader_workers": 9}
    check(folder, config.model_copy(update=streamed))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "holds no prepared data set"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text('{"format": 99}'), "has format 99, this version reads 2"),
        (lambda folder: (folder / MANIFEST).write_text('{"format": 2}'), "manifest.json is damaged"),
        (lambda folder: (folder / "big/train/shard.00000.mds").unlink(), "shard .*big/train/shard.00000.mds is missing"),
        (lambda folder: (folder / "big/train/index.json").unlink(), "shard index .*big/train/index.json is missing"),
        (lambda folder: flip(folder / "big/train/index.json", 5), "shard index .*big/train/index.json is damaged"),
        (lambda folder: flip(folder / "small/held_out/shard.00000.mds", -3), "small/held_out/shard.00000.mds is damaged .its digest"),
        (lambda folder: (folder / "big/train/shard.00000.mds").write_bytes(b"short"), "is damaged: 5 bytes where its index says"),
        (lambda folder: flip(folder / "tokenizer.json", 40), "tokenizer.json is not the tokenizer of these shards"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    ],
)
def test_damage_is_named(copied: tuple[DataConfig, Path], damage: Callable[[Path], None], message: str) -> None:
    config, folder = copied
    damage(folder)
    with pytest.raises(DataError, match=message) as fault:
        check(folder, config, verify=True)
    assert "prepare" in str(fault.value)


def test_digests_are_not_compared_when_not_asked_for(copied: tuple[DataConfig, Path]) -> None:
    config, folder = copied
    flip(folder / "big/train/shard.00000.mds", -3)
    check(folder, config, verify=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 64}, "data.seq_len is 64 but the shards in .* are cut for 32"),
        (
            {"tokenizer": TokenizerConfig(vocab_size=500)},
            "data.tokenizer is kind byte_bpe, vocab_size 500.* with .*vocab_size 400",
        ),
        ({"seed": 5}, "data.seed is 5 but the shards in .* were made with 0"),
        ({"deduplicate": False}, "data.deduplicate is False"),
    ],
)
def test_another_recipe_is_named(two_sources: tuple[DataConfig, Path], changes: dict[str, object], message: str) -> None:
    config, folder = two_sources
    with pytest.raises(DataError, match=message):
        check(folder, config.model_copy(update=changes))


def test_another_corpus_is_named(two_sources: tuple[DataConfig, Path]) -> None:
    config, folder = two_sources
    other = config.sources[1].model_copy(update={"path": "/other"})
    with pytest.raises(DataError, match=r"are from another corpus: data.sources differs \(small\)"):
        check(folder, config.model_copy(update={"sources": [config.sources[0], other]}))
    with pytest.raises(DataError, match="a source was removed or moved"):
        check(folder, config.model_copy(update={"sources": config.sources[:1]}))


def test_a_changed_tokenizer_file_is_named(copied: tuple[DataConfig, Path], tmp_path: Path) -> None:
    config, folder = copied
    wanted = TokenizerConfig(kind="file", path=str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text("another")
    values = json.loads((folder / MANIFEST).read_text())
    values["recipe"]["tokenizer"] = wanted.model_dump(mode="json")
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"data.tokenizer.path .*t.json is another tokenizer"):
        check(folder, config.model_copy(update={"tokenizer": wanted}))
