"""A random permutation of any size without memory: element i is computed alone.

A generalised Feistel network (Black and Rogaway 2002, section 5) permutes the pairs (left, right) of the least rectangle a * b that
holds n, and walks along its cycle until it is below n. Integer arithmetic only: the same on every machine and numpy.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from data_pipeline.shingles import mix

_ROUNDS = 8


def permuted(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """int64, the elements at `places` (0 .. size - 1) of the permutation of range(size) that the 64-bit `key` names."""
    width = isqrt(size - 1) + 1 if size > 1 else 1
    height = -(-size // width)
    secrets = mix(mix(np.arange(_ROUNDS, dtype=np.uint64)) + np.array([key], np.uint64))
    values = _rounds(np.asarray(places, np.uint64), width, height, secrets)
    while (outside := values >= size).any():
        values[outside] = _rounds(values[outside], width, height, secrets)
    return values.astype(np.int64)


def _rounds(values: np.ndarray, width: int, height: int, secrets: np.ndarray) -> np.ndarray:
    a, b = np.uint64(width), np.uint64(height)
    left, right = values % a, values // a
    for even, odd in secrets.reshape(-1, 2):
        left = (left + mix(right ^ even) % a) % a
        right = (right + mix(left ^ odd) % b) % b
    return right * a + left
