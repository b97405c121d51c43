"""Windows by global id, and damage found while reading."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.windows import Windows


def test_ids_run_over_all_sources_and_do_not_depend_on_what_is_opened(two_sources: tuple[DataConfig, Path]) -> None:
    folder = two_sources[1]
    windows, big, small = (Windows(folder, "train", source) for source in (None, "big", "small"))
    assert len(windows) == len(big) + len(small) and windows.ids == range(len(windows))
    assert small.ids == range(len(big), len(windows))
    assert windows.counts == {**big.counts, **small.counts}
    rows = windows.read([0, len(big) - 1, len(big), len(windows) - 1])
    assert rows.shape == (4, 33) and rows.dtype == np.int64
    assert np.array_equal(rows[2:], small.read([len(big), len(windows) - 1]))
    assert [windows.source_of(sample) for sample in (0, len(big) - 1, len(big))] == ["big", "big", "small"]
    assert windows.read([]).shape == (0, 33)
    with pytest.raises(IndexError):
        small.read([0])
    with pytest.raises(DataError, match="has no source 'huge'; sources: big, small"):
        Windows(folder, "train", "huge")


def test_documents_end_in_the_token_that_windows_name(two_sources: tuple[DataConfig, Path]) -> None:
    windows = Windows(two_sources[1], "train", "big")
    ends = sum(int((row[1:] == windows.end_of_document).sum()) for row in windows.read_ragged(windows.ids))
    assert ends in (33, 34, 35)  # 40 documents, one folder of five (at most two) held out, the cut tail may hold the last


def test_only_the_last_held_out_window_is_short(two_sources: tuple[DataConfig, Path]) -> None:
    windows = Windows(two_sources[1], "held_out", "big")
    lengths = [len(row) for row in windows.read_ragged(windows.ids)]
    assert set(lengths[:-1]) == {33} and 2 <= lengths[-1] < 33
    with pytest.raises(DataError, match="tokens, not 33; read it with read_ragged"):
        windows.read([windows.ids[-1]])


def test_windows_travel_to_other_processes(two_sources: tuple[DataConfig, Path]) -> None:
    windows = Windows(two_sources[1], "train")
    rows = windows.read([3, 5])
    copy = pickle.loads(pickle.dumps(windows))
    assert np.array_equal(copy.read([3, 5]), rows)


@pytest.mark.filterwarnings("ignore:overflow")  # streaming adds up sizes that are damaged
def test_a_damaged_shard_is_named_when_it_is_read(two_sources: tuple[DataConfig, Path], tmp_path: Path) -> None:
    shutil.copytree(two_sources[1], tmp_path / "set")
    shard = tmp_path / "set" / "big" / "train" / "shard.00000.mds"
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], bytes(len(whole)), whole[:-80] + b"\xff" * 80):
        shard.write_bytes(damaged)
        windows = Windows(tmp_path / "set", "train", "big")
        with pytest.raises(DataError, match=r"shard .*big/train/shard.00000.mds is damaged"):
            windows.read(windows.ids)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard .*big/train/shard.00000.mds is missing"):
        Windows(tmp_path / "set", "train").read([0])


def test_windows_that_changed_places_are_found(two_sources: tuple[DataConfig, Path], tmp_path: Path) -> None:
    shutil.copytree(two_sources[1], tmp_path / "set")
    shard = tmp_path / "set" / "big" / "train" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    first, second, third = np.frombuffer(data[4:16], np.uint32).tolist()
    data[first:third] = data[second:third] + data[first:second]
    shard.write_bytes(bytes(data))
    windows = Windows(tmp_path / "set", "train")
    with pytest.raises(DataError, match="window 0 is not in its place"):
        windows.read([0])
    assert windows.read([2]).shape == (1, 33)
