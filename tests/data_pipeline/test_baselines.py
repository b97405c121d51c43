"""Count models against the same formulas written with dictionaries."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.baselines import PairCounts, bigram_loss, count_pairs, ngram_losses, unigram_loss
from data_pipeline.config import DataConfig
from data_pipeline.windows import Windows


class KneserNey:
    """p(word | before), as in Chen and Goodman (1999), one probability at a time."""

    def __init__(self, pairs: Counter[tuple[int, int]], vocab: int) -> None:
        self.pairs, self.vocab = pairs, vocab
        self.histories = Counter(second for _, second in pairs)
        self.following: dict[int, dict[int, int]] = {}
        for (first, second), count in pairs.items():
            self.following.setdefault(first, {})[second] = count
        self.discounts = [self.discount(list(counts.values())) for counts in (pairs, self.histories)]

    @staticmethod
    def discount(counts: list[int]) -> float:
        once, twice = counts.count(1), counts.count(2)
        return once / (once + 2 * twice) if once and twice else 0.5

    def probability(self, before: int, word: int) -> float:
        upper, lower = self.discounts
        kinds = len(self.pairs)
        below = max(self.histories[word] - lower, 0) / kinds + lower * len(self.histories) / kinds / self.vocab
        following = self.following.get(before)
        if following is None:
            return below
        total = sum(following.values())
        return max(following.get(word, 0) - upper, 0) / total + upper * len(following) / total * below


def pairs_of(windows: Windows, n_windows: int | None = None) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for row in windows.read_ragged(windows.ids[:n_windows]) for a, b in pairwise(row)]


@pytest.mark.parametrize("source", ["big", "small"])
@pytest.mark.parametrize("n_windows", [3, None])
def test_losses_on_a_prepared_set(n_windows: int | None, source: str, two_sources: tuple[DataConfig, Path]) -> None:
    folder = two_sources[1]
    train, held_out = Counter(pairs_of(Windows(folder, "train"))), pairs_of(Windows(folder, "held_out", source), n_windows)
    vocab = Windows(folder, "train").vocab_size
    words = Counter()  # type: Counter[int]
    for (_, word), count in train.items():
        words[word] += count
    unigram = -sum(math.log((words[word] + 1) / (words.total() + vocab)) for _, word in held_out) / len(held_out)
    model = KneserNey(train, vocab)
    bigram = -sum(math.log(model.probability(*pair)) for pair in held_out) / len(held_out)
    losses = ngram_losses(folder, n_windows)[source]
    assert losses["unigram"] == pytest.approx(unigram, rel=1e-12)
    assert losses["bigram"] == pytest.approx(bigram, rel=1e-12)
    assert losses["bigram"] < losses["unigram"] < math.log(vocab)


def test_probabilities_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    vocab = 7
    codes, counts = np.unique(rng.integers(0, 6, 40) * vocab + rng.integers(0, 5, 40), return_counts=True)
    pairs = PairCounts(vocab, codes, counts)
    for before in range(vocab):  # token 6 never comes before another
        each = [math.exp(-bigram_loss(pairs, np.array([before]), np.array([word]))) for word in range(vocab)]
        assert sum(each) == pytest.approx(1.0, abs=1e-12) and min(each) > 0
    assert sum(math.exp(-unigram_loss(pairs, np.array([word]))) for word in range(vocab)) == pytest.approx(1.0, abs=1e-12)


def test_every_train_token_is_counted_once(two_sources: tuple[DataConfig, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = two_sources[1]
    windows = Windows(folder, "train")
    whole = count_pairs(windows)
    assert whole.counts_P.sum() == len(windows) * windows.seq_len
    monkeypatch.setattr("data_pipeline.baselines._WINDOWS", 10)
    blocks = count_pairs(windows)
    assert np.array_equal(blocks.codes_P, whole.codes_P) and np.array_equal(blocks.counts_P, whole.counts_P)


def test_results_are_kept_for_this_set_and_number_of_windows(two_sources: tuple[DataConfig, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, numbers = two_sources[1], (2, 4, None)
    losses = [ngram_losses(folder, n_windows) for n_windows in numbers]
    assert len({one["big"]["unigram"] for one in losses}) == 3
    monkeypatch.setattr("data_pipeline.baselines.count_pairs", lambda _: pytest.fail("counted again"))
    assert [ngram_losses(folder, n_windows) for n_windows in numbers] == losses
