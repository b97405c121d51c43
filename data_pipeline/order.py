"""Which samples a step takes: a pure function of (seed, step), the same for any number of hosts, ranks and workers.

One source: an epoch is a permutation of its windows, cut to a multiple of the global batch, so that no batch is short.
Several sources: sample slot j of the run belongs to a source by exact integer arithmetic, such that after any number of slots
every source has had its proportion to within half as many samples as there are sources; each source goes through its own
permutations and wraps by itself.

In `streams` there is no permutation: the windows are cut into as many runs as a batch has samples, and a step takes the next of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Literal

import numpy as np

from data_pipeline.documents import rank_of
from data_pipeline.errors import DataError
from data_pipeline.permutation import permuted


class SampleOrder:
    """Global ids of every step. `counts` are windows a source, in the order in which global ids count them."""

    def __init__(
        self,
        counts: Mapping[str, int],
        proportions: Mapping[str, float] | None,
        global_batch: int,
        seed: int,
        order: Literal["shuffled", "streams"] = "shuffled",
    ) -> None:
        """Raises DataError where a source is empty, has no proportion, or one source does not fill a global batch."""
        if global_batch < 1:
            raise DataError(f"train.global_batch is {global_batch}; it must be at least 1")
        for name, count in counts.items():
            if count < 1:
                raise DataError(f"source '{name}' has no train windows; give it more text or shorten data.seq_len")
        if len(counts) == 1 and (only := next(iter(counts.values()))) < global_batch:
            mend = f"lower it to {only} or less, or prepare more text"
            raise DataError(f"train.global_batch is {global_batch} but the train split has {only} windows; {mend}")
        self._counts = dict(counts)
        self._starts = dict(zip(counts, np.cumsum([0, *counts.values()])[:-1].tolist(), strict=True))
        self._batch = global_batch
        self._seed = seed
        self._order = order
        self._proportions = _exact_proportions(counts, proportions)
        self._shares = _remaining_shares(self._proportions)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass (one source); with several, steps until the source that lasts longest has been passed once."""
        if len(self._counts) == 1:
            return next(iter(self._counts.values())) // self._batch
        slots = max(count / self._proportions[name] for name, count in self._counts.items())
        return -(-ceil(slots) // self._batch)

    def epoch(self, step: int) -> int:
        """Whole passes before this step: over the source, or over the one of several that is furthest behind."""
        if len(self._counts) == 1:
            return step // self.steps_per_epoch
        drawn = self._drawn(step * self._batch)
        return min(drawn[name] // count for name, count in self._counts.items())

    def ids(self, step: int) -> list[int]:
        """The `global_batch` global ids of a step (counted from 0)."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        if len(self._counts) == 1:
            ((name, count),) = self._counts.items()
            steps = count // self._batch
            epoch, within = divmod(step, steps)
            if self._order == "streams":
                return list(range(within, steps * self._batch, steps))
            places = np.arange(within * self._batch, (within + 1) * self._batch)
            return self._permuted(name, epoch, places).tolist()
        return self._mixture(range(step * self._batch, (step + 1) * self._batch))

    def _mixture(self, slots: range) -> list[int]:
        """Ids of sample slots: who owns a slot is seen where the number of drawn samples grows."""
        places: dict[tuple[str, int], list[tuple[int, int]]] = {}
        before = self._drawn(slots.start)
        for slot in slots:
            after = self._drawn(slot + 1)
            name = next(name for name in self._counts if after[name] > before[name])
            epoch, place = divmod(before[name], self._counts[name])
            places.setdefault((name, epoch), []).append((slot - slots.start, place))
            before = after
        ids = np.empty(len(slots), np.int64)
        for (name, epoch), pairs in places.items():
            wanted = np.array(pairs)
            ids[wanted[:, 0]] = self._starts[name] + self._permuted(name, epoch, wanted[:, 1])
        return ids.tolist()

    def _permuted(self, name: str, epoch: int, places: np.ndarray) -> np.ndarray:
        return permuted(places, self._counts[name], rank_of(self._seed, name, "epoch", str(epoch)))

    def _drawn(self, slots: int) -> dict[str, int]:
        """Samples of each source among the first `slots`: each takes its rounded share of what those before it left.

        Rounding a product by a share is monotone in the slots and grows by at most one, so each slot adds one sample
        to exactly one source.
        """
        drawn = {}
        for name, share in self._shares.items():
            drawn[name] = (2 * slots * share.numerator + share.denominator) // (2 * share.denominator)
            slots -= drawn[name]
        return drawn


def _exact_proportions(counts: Mapping[str, int], proportions: Mapping[str, float] | None) -> dict[str, Fraction]:
    """Proportions that sum to 1; by windows where none are given."""
    weights = {}
    for name, count in counts.items():
        weight = count if proportions is None else proportions.get(name, 0.0)
        if not weight > 0:
            raise DataError(f"source '{name}' has proportion {weight}; it must be above 0")
        # 0.1 as written, not as a binary fraction with 55 digits.
        weights[name] = Fraction(str(weight))
    total = sum(weights.values(), Fraction(0))
    return {name: weight / total for name, weight in weights.items()}


def _remaining_shares(proportions: dict[str, Fraction]) -> dict[str, Fraction]:
    """Each source's share of what the sources before it leave; the last takes all of it."""
    shares = {}
    left = Fraction(1)
    for name, proportion in proportions.items():
        shares[name] = proportion / left
        left -= proportion
    return shares
