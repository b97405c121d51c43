"""Windows of tokens as MDS shards, written and read with mosaicml-streaming.

A sample is `id` (its number within its source and split), `tokens` (seq_len + 1 ids; the last of a held-out split may be
shorter) and `check` (CRC-32 of the tokens' bytes: streaming reads by offset and would not see a flipped bit).
Consecutive windows share one token, so that every token but the first is predicted exactly once.
streaming's dataset class is left aside: its world comes from the environment and its shared memory outlives a killed process.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from bisect import bisect_right
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.files import link_or_copy, write_text
from data_pipeline.manifest import Split
from data_pipeline.streaming_parts import streaming_part
from data_pipeline.tokens import load_tokens

INDEX = "index.json"
SHARD_BYTES = 8 << 20
_SHARD = "shard.00000.mds"


class ShardReader(Protocol):
    """What is used of streaming's Reader."""

    samples: int

    def get_item(self, idx: int) -> dict[str, Any]:
        """Sample `idx` of the shard."""


def count_windows(tokens: int, seq_len: int, split: Split) -> int:
    """Windows of a stream of `tokens` ids: whole ones for train, and the ragged tail too for held_out."""
    predicted = max(tokens - 1, 0)
    return predicted // seq_len if split == "train" else -(-predicted // seq_len)


def windows_a_shard(seq_len: int, token_bytes: int) -> int:
    """Windows that fill SHARD_BYTES."""
    return max(SHARD_BYTES // ((seq_len + 1) * token_bytes), 1)


def write_shard(parts: list[tuple[Path, int]], split: Split, seq_len: int, first: int, last: int, folder: Path) -> str:
    """Write windows `first` to `last` (exclusive) of a stream as one shard with its index into `folder`.

    `parts` are the token files the stream consists of, with the position of each one's first token.
    """
    writer_class = streaming_part("base.format", "MDSWriter")
    tokens = _stretch(parts, split, first * seq_len, last * seq_len + 1)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    columns = {"id": "int", "tokens": f"ndarray:{tokens.dtype.name}", "check": "uint32"}
    try:
        # Token ids from 0 to first * seq_len are not in `tokens`.
        with writer_class(out=str(temporary / "mds"), columns=columns, hashes=["sha256"], size_limit=None) as writer:
            for window in range(first, last):
                start = (window - first) * seq_len
                values = tokens[start : start + seq_len + 1]
                writer.write({"id": window, "tokens": values, "check": np.uint32(zlib.crc32(values.tobytes()))})
        shutil.rmtree(folder, ignore_errors=True)
        (temporary / "mds").rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder.name


def _stretch(parts: list[tuple[Path, int]], split: Split, start: int, stop: int) -> np.ndarray:
    """Tokens `start:stop` of the stream (fewer at its end)."""
    firsts = [first for _, first in parts]
    pieces = []
    for path, first in parts[max(bisect_right(firsts, start) - 1, 0) :]:
        if first >= stop:
            break
        tokens = load_tokens(path, split)
        pieces.append(tokens[max(start - first, 0) : stop - first])
    return np.concatenate(pieces)


def merge_shards(folders: list[Path], target: Path) -> None:
    """Put the shards of `folders` under one index in `target`, in order, named as one writer would have named them."""
    target.mkdir(parents=True, exist_ok=True)
    merged = []
    for number, folder in enumerate(folders):
        (info,) = json.loads((folder / INDEX).read_text())["shards"]
        info["raw_data"]["basename"] = f"shard.{number:05d}.mds"
        link_or_copy(folder / _SHARD, target / info["raw_data"]["basename"])
        merged.append(info)
    write_text(target / INDEX, json.dumps({"version": 2, "shards": merged}, sort_keys=True))


def open_shards(folder: Path) -> list[ShardReader]:
    """Readers of the shards below `folder`, in order; streaming's own where it is installed, else PlainReader.

    Raises:
        DataError: there is no index, or it is damaged.
    """
    try:
        stream_class, world_class = streaming_part("base.stream", "Stream"), streaming_part("base.world", "World")
    except ImportError:
        return list(_plain_readers(folder))
    try:
        # A world of one, stated: streaming would take it from RANK and WORLD_SIZE.
        world = world_class(1, 1, 1, 0)
        return list(stream_class(local=str(folder)).get_shards(world, allow_unsafe_types=False))
    except (RuntimeError, ValueError, KeyError, TypeError) as fault:
        raise DataError(f"shard index {folder / INDEX} is missing or damaged: {fault}; prepare the set again") from None


class PlainReader:
    """Reads the shards that `write_shard` writes, where streaming is not installed.

    MDS: uint32 count n, uint32 offsets [n + 1], a JSON header, samples. A sample: uint32 bytes of the variable column,
    `check` as uint32, `id` as int64, `tokens` as one byte (ndim << 2 | log2 bytes of a length), its length, its values.
    """

    def __init__(self, path: Path, samples: int, token_type: str) -> None:
        self.samples = samples
        self._path = path
        self._token_type = token_type
        self._bytes: np.ndarray | None = None

    def get_item(self, idx: int) -> dict[str, Any]:
        """Sample `idx`: `{"id": int, "tokens": [T + 1], "check": int}`."""
        if self._bytes is None:
            self._bytes = np.memmap(self._path, np.uint8, mode="r")
        begin, end = self._bytes[4 + 4 * idx : 12 + 4 * idx].view(np.uint32)
        sample = self._bytes[int(begin) : int(end)]
        length_bytes = 1 << (int(sample[16]) & 3)
        return {
            "check": int(sample[4:8].copy().view(np.uint32)[0]),
            "id": int(sample[8:16].copy().view(np.int64)[0]),
            "tokens": sample[17 + length_bytes :].copy().view(self._token_type),
        }


def _plain_readers(folder: Path) -> list[PlainReader]:
    try:
        shards = json.loads((folder / INDEX).read_text())["shards"]
        encodings = [shard["column_encodings"][2].removeprefix("ndarray:") for shard in shards]
        return [
            PlainReader(folder / shard["raw_data"]["basename"], shard["samples"], encoding)
            for shard, encoding in zip(shards, encodings, strict=True)
        ]
    except (OSError, ValueError, KeyError, IndexError) as fault:
        raise DataError(f"shard index {folder / INDEX} is missing or damaged: {fault}; prepare the set again") from None
