"""Hashes of word n-grams: the measure of likeness between documents, and of overlap between splits.

Words are runs of letters, digits and underscores, lower-cased. All arithmetic is uint64 modulo 2^64.
Legend: W words of a text, N n-grams, P hash functions of a signature.
"""

from __future__ import annotations

import re
from binascii import crc32
from collections.abc import Iterable

import numpy as np

NEAR_GRAM = 5
OVERLAP_GRAM = 13
PERMUTATIONS = 128

_WORD = re.compile(r"\w+")
_BLOCK = 4096


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of uint64 that spreads every bit."""
    x = np.asarray(x, np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_FACTOR = mix(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)
_OFFSET = mix(np.arange(PERMUTATIONS + 1, 2 * PERMUTATIONS + 1, dtype=np.uint64))


def word_hashes(text: str) -> np.ndarray:
    """uint64 [W], one well-mixed number a word."""
    words = _WORD.findall(text.lower())
    # Texts repeat their words: hashing each distinct one once halves the time.
    number = {word: crc32(word.encode("utf-8", "surrogatepass")) for word in set(words)}
    return mix(np.fromiter(map(number.__getitem__, words), np.uint64, len(words)))


def gram_hashes(words_W: np.ndarray, n: int) -> np.ndarray:
    """uint64 [max(W - n + 1, 1)], one number a run of `n` words; a shorter text is one run. Empty for no words."""
    if not len(words_W):
        return np.empty(0, np.uint64)
    n = min(n, len(words_W))
    grams_N = np.zeros(len(words_W) - n + 1, np.uint64)
    for place in range(n):
        grams_N = grams_N * np.uint64(0x9E3779B97F4A7C15) + words_W[place : place + len(grams_N)]
    return mix(grams_N)


def signature(grams_N: np.ndarray) -> np.ndarray:
    """MinHash of a set of n-grams (Broder 1997): uint32 [P].

    The share of equal places of two signatures estimates the Jaccard index of the two sets, with a standard deviation
    of at most 0.5 / sqrt(P) = 0.044. An empty set has the signature of all ones.
    """
    least_P = np.full(PERMUTATIONS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams_N), _BLOCK):
        block_PN = grams_N[None, start : start + _BLOCK] * _FACTOR[:, None] + _OFFSET[:, None]
        np.minimum(least_P, block_PN.min(1), out=least_P)
    return (least_P >> np.uint64(32)).astype(np.uint32)


def sample_threshold(expected: int, wanted: int) -> int:
    """Hashes below this number are a fair sample of about `wanted` out of `expected` n-grams."""
    full = (1 << 64) - 1
    return full if expected <= wanted else full * wanted // expected


def overlap_grams(texts: Iterable[str], threshold: int) -> np.ndarray:
    """Sorted distinct hashes below `threshold` of the texts' 13-grams; texts of fewer words have none."""
    kept = []
    for text in texts:
        words_W = word_hashes(text)
        if len(words_W) >= OVERLAP_GRAM:
            grams_N = gram_hashes(words_W, OVERLAP_GRAM)
            kept.append(grams_N[grams_N <= np.uint64(threshold)])
    return np.unique(np.concatenate(kept)) if kept else np.empty(0, np.uint64)
