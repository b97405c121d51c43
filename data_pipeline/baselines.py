"""Losses of two count models, for the eye: what a network must beat to have learned more than word and pair frequencies.

unigram  add-one: p(w) = (c(w) + 1) / (n + V).
bigram   interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, section 2.7), with absolute discount
         D = n1 / (n1 + 2 n2) at both levels: p(w|v) = max(c(vw) - D, 0) / c(v) + D N(v.) / c(v) * q(w), where q(w) follows the
         number of distinct words before w, discounted likewise towards 1 / V.

Both are estimated on every predicted token of the train split, of all sources, and scored on the held-out windows that a model is
scored on: the first so many of every source, every predicted token, tails included.

Legend: P distinct pairs, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.files import write_text
from data_pipeline.manifest import load_manifest
from data_pipeline.windows import Windows

CACHE = "baselines.json"
_WINDOWS = 4096


def ngram_losses(folder: Path, max_windows: int | None = None) -> dict[str, dict[str, float]]:
    """`{"unigram": nats, "bigram": nats}` a token by source, over its first `max_windows` held-out windows (None: all).

    Results are kept in the folder, keyed by the set's digest and the number of windows.

    Raises:
        DataError: a shard that is counted or scored is damaged or missing.
    """
    manifest = load_manifest(folder)
    cache = folder / CACHE
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    key = f"{manifest.digest}/{'all' if max_windows is None else f'first {max_windows}'} windows of a source"
    if key not in known:
        counts = count_pairs(Windows(folder, "train"))
        known = {**known, key: {source: _losses(counts, Windows(folder, "held_out", source), max_windows) for source in manifest.sources}}
        write_text(cache, json.dumps(known, indent=1))
    return dict(known[key])


def _losses(counts: PairCounts, windows: Windows, max_windows: int | None) -> dict[str, float]:
    before_N, predicted_N = (np.concatenate(blocks) for blocks in zip(*_pairs(windows, windows.ids[:max_windows]), strict=True))
    return {"unigram": unigram_loss(counts, predicted_N), "bigram": bigram_loss(counts, before_N, predicted_N)}


@dataclass(frozen=True)
class PairCounts:
    """Counts of adjacent tokens of the train split."""

    vocab_size: int
    codes_P: np.ndarray  # int64, first * V + second, ascending
    counts_P: np.ndarray  # int64


def count_pairs(windows: Windows) -> PairCounts:
    """Count every (token before, predicted token) of all windows."""
    codes_P, counts_P = np.empty(0, np.int64), np.empty(0, np.int64)
    for before, predicted in _pairs(windows, windows.ids):
        codes, counts = np.unique(before * windows.vocab_size + predicted, return_counts=True)
        codes_P, inverse = np.unique(np.concatenate([codes_P, codes]), return_inverse=True)
        counts_P = np.bincount(inverse, np.concatenate([counts_P, counts])).astype(np.int64)
    return PairCounts(windows.vocab_size, codes_P, counts_P)


def _pairs(windows: Windows, ids: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens before, predicted tokens), int64 [N] each, a few thousand windows at a time."""
    for start in range(0, len(ids), _WINDOWS):
        rows = windows.read_ragged(ids[start : start + _WINDOWS])
        yield np.concatenate([row[:-1] for row in rows]), np.concatenate([row[1:] for row in rows])


def unigram_loss(counts: PairCounts, predicted_N: np.ndarray) -> float:
    """Mean of -ln p(w) with add-one smoothing, nats."""
    vocab = counts.vocab_size
    count_V = np.bincount(counts.codes_P % vocab, counts.counts_P, vocab)
    return float(-np.log((count_V[predicted_N] + 1) / (count_V.sum() + vocab)).mean())


def bigram_loss(counts: PairCounts, before_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Mean of -ln p(w|v), interpolated Kneser-Ney, nats."""
    vocab = counts.vocab_size
    first_P, second_P = counts.codes_P // vocab, counts.codes_P % vocab
    lower_V = _continuation(second_P, vocab)
    discount = _discount(counts.counts_P)
    total_V = np.bincount(first_P, counts.counts_P, vocab)
    kinds_V = np.bincount(first_P, minlength=vocab)
    code_N = before_N * vocab + predicted_N
    place_N = np.minimum(np.searchsorted(counts.codes_P, code_N), len(counts.codes_P) - 1)
    count_N = np.where(counts.codes_P[place_N] == code_N, counts.counts_P[place_N], 0)
    total_N = total_V[before_N]
    seen_N = np.maximum(total_N, 1)
    rest_N = np.where(total_N > 0, discount * kinds_V[before_N] / seen_N, 1.0)
    return float(-np.log(np.maximum(count_N - discount, 0) / seen_N + rest_N * lower_V[predicted_N]).mean())


def _continuation(second_P: np.ndarray, vocab: int) -> np.ndarray:
    """q(w): [V], sums to 1, nowhere 0."""
    before_V = np.bincount(second_P, minlength=vocab)
    discount = _discount(before_V[before_V > 0])
    share_V = np.maximum(before_V - discount, 0) / len(second_P)
    return share_V + discount * np.count_nonzero(before_V) / len(second_P) / vocab


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), 0.5 where a count of one or of two does not occur."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5
