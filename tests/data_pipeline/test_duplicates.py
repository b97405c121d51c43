"""Likeness of documents: what repeats is found, what does not is kept."""

from __future__ import annotations

import numpy as np

from data_pipeline.duplicates import exact_duplicates, near_duplicates
from data_pipeline.shingles import NEAR_GRAM, PERMUTATIONS, gram_hashes, overlap_grams, sample_threshold, signature, word_hashes


def random_words(rng: np.random.Generator, count: int) -> list[str]:
    return [f"w{number}" for number in rng.integers(0, 10_000, count)]


def sign(words: list[str]) -> np.ndarray:
    return signature(gram_hashes(word_hashes(" ".join(words)), NEAR_GRAM))


def test_signature_estimates_the_jaccard_index() -> None:
    rng = np.random.default_rng(0)
    for kept in (100, 500, 900):
        first = random_words(rng, 1000)
        second = first[:kept] + random_words(rng, 1000 - kept)
        grams = [{tuple(words[i : i + NEAR_GRAM]) for i in range(len(words) - NEAR_GRAM + 1)} for words in (first, second)]
        jaccard = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        estimate = (sign(first) == sign(second)).mean()
        assert abs(estimate - jaccard) < 4 * np.sqrt(jaccard * (1 - jaccard) / PERMUTATIONS)


def test_words_are_folded_and_blanks_do_not_matter() -> None:
    assert np.array_equal(word_hashes("The  Cat\n sat"), word_hashes("the cat sat"))
    assert len(np.unique(word_hashes("äpfel und birnen"))) == 3
    assert len(gram_hashes(word_hashes("two words"), 5)) == 1
    assert not len(gram_hashes(word_hashes("?!"), 5))


def test_near_duplicates_are_found_and_the_first_is_kept() -> None:
    rng = np.random.default_rng(1)
    originals = [random_words(rng, 400) for _ in range(30)]
    copies = [[*words[:200], "changed", *words[201:]] for words in originals]
    signatures = np.stack([sign(words) for words in originals + copies])
    assert near_duplicates(signatures).tolist() == [False] * 30 + [True] * 30


def test_documents_that_share_a_licence_are_kept() -> None:
    rng = np.random.default_rng(2)
    licence = random_words(rng, 200)
    signatures = np.stack([sign(licence + random_words(rng, 300)) for _ in range(30)])
    assert not near_duplicates(signatures).any()


def test_exact_duplicates_are_all_but_the_first() -> None:
    digests = np.array([[1] * 16, [2] * 16, [1] * 16, [1] * 16], np.uint8)
    assert exact_duplicates(digests).tolist() == [False, False, True, True]


def test_overlap_grams_against_sets_of_words() -> None:
    rng = np.random.default_rng(3)
    first, second = random_words(rng, 300), random_words(rng, 300)
    second[50:100] = first[120:170]
    shared = np.isin(overlap_grams([" ".join(first)], (1 << 64) - 1), overlap_grams([" ".join(second)], (1 << 64) - 1))
    assert shared.sum() == 50 - 13 + 1
    assert not len(overlap_grams(["too short"], (1 << 64) - 1))


def test_sampled_grams_are_the_wanted_share() -> None:
    words = " ".join(random_words(np.random.default_rng(4), 20_000))
    sampled = overlap_grams([words], sample_threshold(20_000, 2_000))
    assert 1_800 < len(sampled) < 2_200
    assert np.isin(sampled, overlap_grams([words], (1 << 64) - 1)).all()
