"""The second pass over a part: its kept documents as tokens, one file a split, and the n-grams for the overlap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.files import write_arrays
from data_pipeline.manifest import SPLITS, Split
from data_pipeline.shingles import overlap_grams
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources import Part, read_part
from data_pipeline.tokenizer import Tokenizer, open_tokenizer

_BATCH = 64


def token_type(vocab_size: int) -> np.dtype:
    """uint16 where every id fits below 65,536, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def tokenize_part(
    source: SourceConfig, part: Part, fate_D: np.ndarray, tokenizer_path: Path, document_end: str, threshold: int, path: Path
) -> str:
    """Tokenize the part's documents of fate 0 (train) and 1 (held_out) in reading order; write them to `path`.

    The file holds `train` and `held_out` (token ids, documents after one another with their end marks) and
    `train_grams` and `held_out_grams` (see `overlap_grams`). Returns the file's name.

    Raises:
        DataError: the part has changed since it was surveyed.
    """
    tokenizer = open_tokenizer(tokenizer_path, document_end)
    texts: tuple[list[str], ...] = ([], [])
    count = 0
    for count, document in enumerate(read_part(source, part), 1):
        if count <= len(fate_D) and (fate := fate_D[count - 1]) < len(SPLITS):
            texts[fate].append(document.text)
    if count != len(fate_D):
        change = f"{len(fate_D)} documents, now {count}"
        raise DataError(f"{part.entries[0].path} changed while it was being prepared ({change}); run prepare again")
    arrays = {}
    for split, of_split in zip(SPLITS, texts, strict=True):
        arrays[split] = encode_all(tokenizer, of_split)
        arrays[f"{split}_grams"] = overlap_grams(of_split, threshold)
    counts = np.array([len(arrays[split]) for split in SPLITS], np.int64)
    write_arrays(path, counts=counts, **arrays)
    return path.name


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """The token ids of the documents and their end marks, one after another."""
    dtype = token_type(tokenizer.vocab_size)
    pieces = [np.array(ids, dtype) for batch in _batches(texts) for ids in tokenizer.encode_documents(batch)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def load_tokens(path: Path, split: Split) -> np.ndarray:
    """Token ids of one split of a part."""
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[split])


def token_count(path: Path, split: Split) -> int:
    """Tokens of one split of a part, without reading them."""
    with np.load(path, allow_pickle=False) as arrays:
        return int(arrays["counts"][SPLITS.index(split)])


def measure_overlap(parts: dict[str, list[Path]]) -> dict[str, float]:
    """For each source: the share of its distinct held-out 13-grams that occur in the train split of any source."""
    wanted = {source: _joined(paths, "held_out_grams") for source, paths in parts.items()}
    found = {source: np.zeros(len(grams), bool) for source, grams in wanted.items()}
    for path in (path for paths in parts.values() for path in paths):
        with np.load(path, allow_pickle=False) as arrays:
            grams_N = arrays["train_grams"]
        for source, grams in wanted.items():
            found[source] |= np.isin(grams, grams_N, assume_unique=True)
    return {source: float(hit.mean()) if len(hit) else 0.0 for source, hit in found.items()}


def _joined(paths: list[Path], name: str) -> np.ndarray:
    pieces = []
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            pieces.append(arrays[name])
    return np.unique(np.concatenate(pieces))
