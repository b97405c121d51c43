"""Shards are real MDS: streaming's own readers and the plain one see the same samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.files import write_arrays
from data_pipeline.shards import INDEX, PlainReader, count_windows, merge_shards, open_shards, write_shard

CODE_ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("seq_len", [3, 300])
def test_plain_reader_equals_streamings(tmp_path: Path, dtype: type, seq_len: int) -> None:
    tokens = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 10 * seq_len + 2).astype(dtype)
    write_arrays(tmp_path / "part.npz", train=tokens[:0], held_out=tokens[: seq_len + 5])
    write_arrays(tmp_path / "next.npz", train=tokens[:0], held_out=tokens[seq_len + 5 :])
    parts = [(tmp_path / "part.npz", 0), (tmp_path / "next.npz", seq_len + 5)]
    windows = count_windows(len(tokens), seq_len, "held_out")
    assert windows == 11 and count_windows(len(tokens), seq_len, "train") == 10
    for first, last in ((0, 4), (4, 11)):
        write_shard(parts, "held_out", seq_len, first, last, tmp_path / f"shard-{first}")
    merge_shards([tmp_path / "shard-0", tmp_path / "shard-4"], tmp_path / "merged")
    readers = open_shards(tmp_path / "merged")
    assert all(type(reader).__module__ == "streaming.base.format.mds.reader" for reader in readers)
    infos = json.loads((tmp_path / "merged" / INDEX).read_text())["shards"]
    plain = [PlainReader(tmp_path / "merged" / info["raw_data"]["basename"], info["samples"], np.dtype(dtype).name) for info in infos]
    samples = [reader.get_item(index) for reader in readers for index in range(reader.samples)]
    for window, (sample, other) in enumerate(zip(samples, (p.get_item(i) for p in plain for i in range(p.samples)), strict=True)):
        assert int(sample["id"]) == other["id"] == window
        expected = tokens[window * seq_len : window * seq_len + seq_len + 1]
        assert np.array_equal(sample["tokens"], expected) and np.array_equal(other["tokens"], expected)
        assert sample["tokens"].dtype == other["tokens"].dtype == dtype


def test_streamings_world_is_not_asked_for(two_sources: tuple[DataConfig, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    assert open_shards(two_sources[1] / "big" / "train")[0].get_item(0)["id"] == 0
    assert not before or set(Path("/dev/shm").iterdir()) == before


def test_a_missing_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index.json is missing or damaged"):
        open_shards(tmp_path)


def test_parts_of_streaming_need_no_transformers() -> None:
    code = (
        "import sys; from data_pipeline.streaming_parts import streaming_part\n"
        "assert streaming_part('base.stream', 'Stream') and streaming_part('base.format', 'MDSWriter')\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(CODE_ROOT)})


def test_a_package_entered_for_its_parts_is_whole_when_asked(tmp_path: Path) -> None:
    for module, text in {
        "__init__": "from streaming.base import Set",
        "base/__init__": "from streaming.base.heavy import Set",
        "base/heavy": "Set = 1",
        "base/part": "Part = 2",
    }.items():
        (tmp_path / "streaming" / "base").mkdir(parents=True, exist_ok=True)
        (tmp_path / "streaming" / f"{module}.py").write_text(text + "\n")
    code = (
        "import sys; from data_pipeline.streaming_parts import streaming_part\n"
        "assert streaming_part('base.part', 'Part') == 2 and 'streaming.base.heavy' not in sys.modules\n"
        "import streaming; assert not hasattr(streaming, '__wrapped__') and 'streaming.base.heavy' not in sys.modules\n"
        "assert streaming.Set == 1 and streaming.base.part.Part == 2 and 'streaming.base.heavy' in sys.modules\n"
        "assert not hasattr(streaming, 'nothing')\n"
    )
    path = os.pathsep.join([str(tmp_path), str(CODE_ROOT)])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
