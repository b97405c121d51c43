"""The first pass over a part: what documents it holds, without their text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.documents import digest_of_bytes
from data_pipeline.errors import DataError
from data_pipeline.files import write_arrays
from data_pipeline.shingles import NEAR_GRAM, PERMUTATIONS, gram_hashes, signature, word_hashes
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources import Part, read_part


@dataclass(frozen=True)
class Survey:
    """D documents of a part, in reading order."""

    keys: list[str]
    groups: list[str]
    sizes_D: np.ndarray  # int64, bytes of UTF-8
    digests_DB: np.ndarray  # uint8 [D, 16]
    signatures_DP: np.ndarray  # uint32 [D, P], no columns without near-duplicate search

    @staticmethod
    def load(path: Path) -> Survey:
        """Read what `survey_part` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            keys, groups = json.loads(arrays["names"].tobytes())
            return Survey(keys, groups, arrays["sizes"], arrays["digests"], arrays["signatures"])


def survey_part(source: SourceConfig, part: Part, deduplicate: bool, path: Path) -> str:
    """Read every document of the part and write its survey to `path`; returns the file's name.

    Raises:
        DataError: a document cannot be read, or two have one name.
    """
    keys, groups, sizes, digests, signatures = [], [], [], [], []
    for document in read_part(source, part):
        data = document.text.encode("utf-8", "surrogatepass")
        keys.append(document.key)
        groups.append(document.group)
        sizes.append(len(data))
        digests.append(np.frombuffer(digest_of_bytes(data), np.uint8))
        if deduplicate:
            signatures.append(signature(gram_hashes(word_hashes(document.text), NEAR_GRAM)))
    if len(set(keys)) != len(keys):
        raise DataError(f"source '{source.name}': two documents of {part.entries[0].path} have the same name")
    width = PERMUTATIONS if deduplicate else 0
    write_arrays(
        path,
        names=np.frombuffer(json.dumps([keys, groups]).encode(), np.uint8),
        sizes=np.array(sizes, np.int64),
        digests=np.array(digests, np.uint8).reshape(len(keys), 16),
        signatures=np.array(signatures, np.uint32).reshape(len(keys), width),
    )
    return path.name
