"""Which documents are kept and in which split: decided once, from the surveys, before anything is tokenized.

Held-out documents are drawn by group, in hashed order, so that no package or folder is in both splits. Then duplicates go:
held-out documents are looked at first, so that what repeats across the splits is taken out of the train split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.documents import digest_of, rank_of
from data_pipeline.duplicates import exact_duplicates, near_duplicates
from data_pipeline.errors import DataError
from data_pipeline.source_config import SourceConfig
from data_pipeline.survey import Survey

TRAIN, HELD_OUT, EXACT_DUPLICATE, NEAR_DUPLICATE, OVER_BUDGET = range(5)


@dataclass(frozen=True)
class SourcePlan:
    """The fate of a source's documents: one of the numbers above, uint8 [D] for each of its parts."""

    digest: str
    fate_by_part: list[np.ndarray]
    sizes_by_part: list[np.ndarray]

    def count(self, fate: int) -> int:
        """Documents of this fate."""
        return sum(int((part == fate).sum()) for part in self.fate_by_part)

    def text_bytes(self, fate: int) -> int:
        """UTF-8 bytes of the documents of this fate."""
        return sum(int(sizes[part == fate].sum()) for part, sizes in zip(self.fate_by_part, self.sizes_by_part, strict=True))


def make_plan(
    config: DataConfig, surveys: dict[str, list[Survey]], published: dict[str, list[bool]] | None = None
) -> dict[str, SourcePlan]:
    """Decide the fate of every document.

    Args:
        published: of every part of a source, whether its publisher holds it out; None where no source has such parts.

    Raises:
        DataError: a source is empty, or has too few groups or documents to hold some out.
    """
    fates = {}
    for source in config.sources:
        parts = surveys[source.name]
        fates[source.name] = _draw(config, source, parts, published[source.name] if published else [False] * len(parts))
    if config.deduplicate:
        _mark_duplicates(fates, surveys)
    plans = {}
    for source in config.sources:
        parts = surveys[source.name]
        fate_D = fates[source.name]
        for split, name in ((TRAIN, "train"), (HELD_OUT, "held-out")):
            if not (fate_D == split).any():
                raise DataError(f"source '{source.name}': no {name} document is left after duplicates were removed; give it more text")
        ends = np.cumsum([len(part.keys) for part in parts])[:-1]
        digest = digest_of([np.concatenate([part.digests_DB for part in parts]).tobytes().hex(), [part.keys for part in parts]])
        plans[source.name] = SourcePlan(digest, np.split(fate_D, ends), [part.sizes_D for part in parts])
    return plans


def _draw(config: DataConfig, source: SourceConfig, parts: list[Survey], published: list[bool]) -> np.ndarray:
    """uint8 [D]: TRAIN, HELD_OUT or OVER_BUDGET."""
    keys = [key for part in parts for key in part.keys]
    groups = [group for part in parts for group in part.groups]
    if not keys:
        raise DataError(f"source '{source.name}' holds no readable text; check its path, suffixes and text_field")
    sizes_D = np.concatenate([part.sizes_D for part in parts])
    held_D = np.repeat(np.array(published), [len(part.keys) for part in parts])
    fate_D = np.full(len(keys), TRAIN, np.uint8)
    if source.max_megabytes is not None:
        fate_D[_over_budget(config, source, keys, np.where(held_D, 0, sizes_D))] = OVER_BUDGET
    if source.held_out is not None:
        if not held_D.any():
            raise DataError(f"source '{source.name}': held_out holds no document; check held_out.path, split and files")
        fate_D[held_D] = HELD_OUT
        return fate_D
    size_by_group: dict[str, int] = {}
    for group, size, fate in zip(groups, sizes_D.tolist(), fate_D, strict=True):
        if fate == TRAIN:
            size_by_group[group] = size_by_group.get(group, 0) + size
    if len(size_by_group) < 2:
        unit = "folder or file" if source.kind in ("text", "code") else "document"
        raise DataError(f"source '{source.name}' has a single {unit}: nothing can be held out; give it at least two, or more max_megabytes")
    held_out = held_out_groups(size_by_group, config.held_out_fraction, config.seed, source.name)
    fate_D[[fate == TRAIN and group in held_out for fate, group in zip(fate_D, groups, strict=True)]] = HELD_OUT
    return fate_D


def _over_budget(config: DataConfig, source: SourceConfig, keys: list[str], sizes_D: np.ndarray) -> np.ndarray:
    """Indices of the documents beyond `max_megabytes`, in hashed order."""
    order = sorted(range(len(keys)), key=lambda index: (rank_of(config.seed, source.name, keys[index]), keys[index]))
    total = np.cumsum(sizes_D[order])
    kept = max(int(np.searchsorted(total, (source.max_megabytes or 0.0) * 1e6, side="right")), 1)
    return np.array(order[kept:], np.int64)


def held_out_groups(size_by_group: dict[str, int], fraction: float, seed: int, source: str) -> set[str]:
    """Groups in hashed order until they hold `fraction` of the bytes; one that would pass 1.5 times that is left out.

    Where every group is larger, the smallest is held out. At least one group stays for training.
    """
    target = fraction * sum(size_by_group.values())
    ordered = sorted(size_by_group, key=lambda group: (rank_of(seed, source, "held-out", group), group))
    chosen: set[str] = set()
    total = 0
    for group in ordered:
        if total >= target or len(chosen) == len(ordered) - 1:
            break
        if total + size_by_group[group] <= 1.5 * target:
            chosen.add(group)
            total += size_by_group[group]
    return chosen or {min(ordered, key=lambda group: size_by_group[group])}


def _mark_duplicates(fates: dict[str, np.ndarray], surveys: dict[str, list[Survey]]) -> None:
    """Mark repetitions in place, over all sources together."""
    fate_D = np.concatenate(list(fates.values()))
    parts = [part for survey in surveys.values() for part in survey]
    digests_DB = np.concatenate([part.digests_DB for part in parts])
    signatures_DP = np.concatenate([part.signatures_DP for part in parts])
    order = np.concatenate([np.flatnonzero(fate_D == HELD_OUT), np.flatnonzero(fate_D == TRAIN)])
    repeated = exact_duplicates(digests_DB[order])
    fate_D[order[repeated]] = EXACT_DUPLICATE
    order = order[~repeated]
    fate_D[order[near_duplicates(signatures_DP[order])]] = NEAR_DUPLICATE
    start = 0
    for name, fate in fates.items():
        fates[name] = fate_D[start : start + len(fate)]
        start += len(fate)
