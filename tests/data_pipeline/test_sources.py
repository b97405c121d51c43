"""Every form of source gives its documents, the same ones in every way it can be cut into parts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources import list_parts, read_part, records, trees
from data_pipeline.sources.trees import cut_at_blank_lines


def read_all(source: SourceConfig) -> list[Document]:
    return [document for part in list_parts(source, seed=0) for document in read_part(source, part)]


def source_of(kind: str, path: Path, **changes: object) -> SourceConfig:
    return SourceConfig.model_validate({"name": "s", "kind": kind, "path": str(path), **changes})


def test_text_tree_takes_readable_files_of_its_suffixes(tmp_path: Path) -> None:
    (tmp_path / "a" / ".git").mkdir(parents=True)
    (tmp_path / "a" / "one.txt").write_text("one")
    (tmp_path / "two.md").write_text("two")
    (tmp_path / "a" / "code.py").write_text("three")
    (tmp_path / "a" / ".git" / "four.txt").write_text("four")
    (tmp_path / "binary.txt").write_bytes(b"five\0")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xf6")
    (tmp_path / "blank.txt").write_text(" \n")
    found = {document.key: (document.group, document.text) for document in read_all(source_of("text", tmp_path))}
    assert found == {"a/one.txt": ("a", "one"), "two.md": ("two.md", "two")}
    assert [document.key for document in read_all(source_of("code", tmp_path))] == ["a/code.py"]
    assert [document.key for document in read_all(source_of("code", tmp_path, suffixes=[".md"]))] == ["two.md"]


def test_a_single_file_becomes_pieces_that_are_the_file(tmp_path: Path) -> None:
    text = "".join(f"line {number} of a long book\n" + "\n" * (number % 7 == 0) for number in range(9000))
    (tmp_path / "book.txt").write_text(text)
    found = read_all(source_of("text", tmp_path / "book.txt"))
    assert len(found) > 2 and len({document.group for document in found}) == len(found)
    assert "".join(document.text for document in found) == text
    assert all(document.text.endswith("\n\n") for document in found[:-1])
    assert max(map(len, cut_at_blank_lines("x" * 200_000))) == 64 << 10


def test_max_megabytes_is_a_sample_that_does_not_depend_on_the_rest(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text(f"{number}" * 500)
    whole = [document.key for document in read_all(source_of("text", tmp_path))]
    sample = [document.key for document in read_all(source_of("text", tmp_path, max_megabytes=0.02))]
    assert 15 <= len(sample) <= 25
    assert sample[:15] == whole[:15] != sorted(whole)[:15]


def test_installed_python_reads_the_libraries_of_this_interpreter() -> None:
    source = SourceConfig(name="python", kind="installed_python", max_megabytes=1.0)
    parts = list_parts(source, seed=0)
    found = [document for part in parts for document in read_part(source, part)]
    assert 5e5 < sum(len(document.text.encode()) for document in found) <= 1e6
    assert all(document.key.endswith(".py") and "__pycache__" not in document.key for document in found)
    assert all(document.group == document.key.split("/")[0].removesuffix(".py") for document in found)
    assert len({document.group for document in found}) > 5
    assert not any(document.key.startswith("site-packages/") for document in found)


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_jsonl_is_the_same_plain_in_ranges_and_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    texts = [f"document {number} " + "ü" * (number % 50) for number in range(200)] + ["", "last"]
    (tmp_path / "plain.jsonl").write_bytes(jsonl(texts))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(jsonl(texts)))
    (tmp_path / "packed.jsonl.zst").write_bytes(zstandard.compress(jsonl(texts)))
    wanted = [text for text in texts if text]
    for name in ("plain.jsonl", "packed.jsonl.gz", "packed.jsonl.zst"):
        assert [document.text for document in read_all(source_of("jsonl", tmp_path / name))] == wanted
    keys = {document.key for document in read_all(source_of("jsonl", tmp_path / "plain.jsonl"))}
    for size in (100, 333):
        monkeypatch.setattr(records, "_RANGE_BYTES", size)
        found = read_all(source_of("jsonl", tmp_path / "plain.jsonl"))
        assert sorted(document.text for document in found) == sorted(wanted)
        assert {document.key for document in found} == keys


def test_parquet_reads_the_text_column_by_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"body": [f"row {number}" for number in range(10)] + [None], "other": list(range(11))})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    source = source_of("parquet", tmp_path, text_field="body")
    assert len(list_parts(source, seed=0)) == 3
    assert sorted(document.text for document in read_all(source)) == sorted(f"row {number}" for number in range(10))
    with pytest.raises(DataError, match=r"text_field 'text' is not a column of .*t.parquet; columns: body, other"):
        list_parts(source_of("parquet", tmp_path), seed=0)
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="is not a parquet file"):
        list_parts(source, seed=0)


def test_hugging_face_reads_a_local_data_set_and_says_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pytest.importorskip("datasets", reason="datasets is not installed")
    for switch in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(switch, True)  # read from the environment when first imported, which may be long ago
    (tmp_path / "set").mkdir()
    texts = [f"text {number}" for number in range(20)]
    (tmp_path / "set" / "train.jsonl").write_bytes(jsonl(texts))
    assert [document.text for document in read_all(source_of("hugging_face", tmp_path / "set"))] == texts
    beginning = read_all(source_of("hugging_face", tmp_path / "set", max_megabytes=50e-6))
    assert [document.text for document in beginning] == texts[:8]
    (tmp_path / "set" / "more").mkdir()
    (tmp_path / "set" / "more" / "b-1.jsonl").write_bytes(jsonl(["one"]))
    (tmp_path / "set" / "more" / "c-1.jsonl").write_bytes(jsonl(["two"]))
    chosen = source_of("hugging_face", tmp_path / "set", files=["more/b-*.jsonl"], held_out={"files": ["more/c-*.jsonl"]})
    parts = list_parts(chosen, seed=0)
    assert [[document.text for document in read_part(chosen, part)] for part in parts] == [["one"], ["two"]]
    assert [part.held_out for part in parts] == [False, True]
    with pytest.raises(DataError, match="text_field 'body' is not a column"):
        read_all(source_of("hugging_face", tmp_path / "set", text_field="body"))
    with pytest.raises(DataError, match=r"dataset 'no/such' cannot be loaded: .*; check path, subset, files and split, and the network"):
        read_all(SourceConfig(name="s", kind="hugging_face", path="no/such"))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("jsonl", b'{"body": "x"}\n', r"the record at 0 has no field 'text' \(body\); set text_field"),
        ("jsonl", b'{"text": "x"}\nnot json\n', "the record at 14 is not JSON"),
        ("jsonl", b'{"text": 3}\n', "field 'text' is int, not text"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_all(source_of(kind, tmp_path / "bad.jsonl"))


def test_damaged_archives_missing_paths_and_changed_files_are_named(tmp_path: Path) -> None:
    for name, content in (("a.jsonl.gz", gzip.compress(jsonl(["x" * 1000]))[:30]), ("b.jsonl.zst", b"no zstandard")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be decompressed"):
            read_all(source_of("jsonl", tmp_path / name))
    for kind in ("text", "code", "jsonl", "parquet"):
        with pytest.raises(DataError, match=r"source 's': path .*/nowhere does not exist"):
            list_parts(source_of(kind, tmp_path / "nowhere"), seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file below .*empty ends in \.txt"):
        list_parts(source_of("text", tmp_path / "empty"), seed=0)
    (tmp_path / "empty" / "t.txt").write_text("before")
    source = source_of("text", tmp_path / "empty")
    (part,) = list_parts(source, seed=0)
    (tmp_path / "empty" / "t.txt").write_text("after it was listed")
    with pytest.raises(DataError, match=r"t.txt changed while it was being prepared; run prepare again"):
        list(trees.read_part(part))
