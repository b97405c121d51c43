"""Which documents repeat another: exactly (equal bytes) or nearly (word 5-grams with a Jaccard index of 0.8 or more)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from data_pipeline.shingles import PERMUTATIONS, mix

THRESHOLD = 0.8
# 32 bands of 4 rows: a pair at 0.8 is compared with probability 1 - (1 - 0.8^4)^32 > 0.9999999.
BANDS = 32


def exact_duplicates(digests_DB: np.ndarray) -> np.ndarray:
    """bool [D]: a document with the same digest (uint8 [D, 16]) comes earlier."""
    seen: set[bytes] = set()
    repeated = np.zeros(len(digests_DB), bool)
    for index, row in enumerate(digests_DB):
        digest = row.tobytes()
        repeated[index] = digest in seen
        seen.add(digest)
    return repeated


def near_duplicates(signatures_DP: np.ndarray) -> np.ndarray:
    """bool [D]: an earlier document that is itself kept agrees with this one in at least 0.8 of the signature's places.

    Candidates are found by locality-sensitive hashing (bands of the MinHash signature), then compared in full.
    """
    bands_DB = _band_keys(signatures_DP)
    kept_by_band: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    repeated = np.zeros(len(signatures_DP), bool)
    for index, keys_B in enumerate(bands_DB.tolist()):
        candidates: set[int] = set()
        for band, key in zip(kept_by_band, keys_B, strict=True):
            candidates.update(band.get(key, ()))
        if candidates:
            likeness = (signatures_DP[sorted(candidates)] == signatures_DP[index]).mean(1)
            repeated[index] = likeness.max() >= THRESHOLD
        if not repeated[index]:
            for band, key in zip(kept_by_band, keys_B, strict=True):
                band[key].append(index)
    return repeated


def _band_keys(signatures_DP: np.ndarray) -> np.ndarray:
    """uint64 [D, BANDS]."""
    rows_DBR = signatures_DP.astype(np.uint64).reshape(len(signatures_DP), BANDS, PERMUTATIONS // BANDS)
    keys_DB = np.zeros(rows_DBR.shape[:2], np.uint64)
    for row in range(rows_DBR.shape[2]):
        keys_DB = mix(keys_DB ^ mix(rows_DBR[:, :, row] + np.uint64(row + 1)))
    return keys_DB
