"""Orderings that papers report, beside what a comparison found for recipes of the same names.

A comparison of minutes on a small model does not decide a paper's claim: it says where it agrees and where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from cluster.comparison.pairs import differences
from cluster.comparison.results import RecipeResult


@dataclass(frozen=True)
class Ordering:
    """`better` has the lower perplexity in `source`."""

    better: str
    worse: str
    source: str


_MOEUT = "arXiv 2405.16039"
_SIGMA = "arXiv 2310.10837"
PUBLISHED = (
    Ordering("moeut", "dense", f"{_MOEUT} Fig. 4, C4, 44M: 18.23 and 18.90 (parameter-matched)"),
    Ordering("moeut", "sigma_moe", f"{_MOEUT} Fig. 4, C4, 44M: 18.23 and 19.21 (parameter-matched)"),
    Ordering("dense", "sigma_moe", f"{_MOEUT} Fig. 4, C4, 44M: 18.90 and 19.21 (parameter-matched)"),
    Ordering("moeut", "sut", f"{_MOEUT} Table 2, C4, 44M: 18.30 and 40.50"),
    Ordering("dense", "pkm", f"{_SIGMA} Table 2, WT-103, 47M: 11.81 and 12.75 (parameter-matched, a memory in every layer)"),
    Ordering("peer", "pkm", "arXiv 2407.04153 Table 1, C4, 6e18 FLOPs: 20.63 and 21.92 (FLOP-matched, one layer, 1024^2 slots)"),
    Ordering("peer", "dense", "arXiv 2407.04153 Table 1, C4, 6e18 FLOPs: 20.63 and 23.84 (FLOP-matched, one layer, 1024^2 slots)"),
    Ordering("altup_dense", "dense", "arXiv 2301.13310: span prediction of T5 is better with AltUp at every size"),
    Ordering("group_2", "group_3", f"{_MOEUT} Fig. 6, C4, 244M: 13.179 and 13.194"),
    Ordering("group_2", "group_1", f"{_MOEUT} Fig. 6, C4, 244M: 13.179 and 13.509"),
    Ordering("group_2", "group_all", f"{_MOEUT} Fig. 6, C4, 244M: 13.179 and 14.252 (G = 18)"),
    Ordering("group_1", "group_all", f"{_MOEUT} Fig. 6, C4, 244M: 13.509 and 14.252 (G = 18)"),
    Ordering("norm_peri", "norm_pre", f"{_MOEUT} Fig. 8, C4, 244M: 13.179 and 13.225"),
    Ordering("norm_peri", "norm_post", f"{_MOEUT} Fig. 8, C4, 244M: 13.179 and 13.579"),
    Ordering("norm_pre", "norm_post", f"{_MOEUT} Fig. 8, C4, 244M: 13.225 and 13.579"),
)


@dataclass(frozen=True)
class Finding:
    """`gaps`: nats a token by which `worse` is above `better` here, one a seed."""

    ordering: Ordering
    gaps: list[float]

    @property
    def gap(self) -> float:
        """Mean over seeds."""
        return mean(self.gaps)

    @property
    def verdict(self) -> str:
        """What each seed says by itself: no test of significance."""
        n, agree, disagree = len(self.gaps), sum(gap > 0.0 for gap in self.gaps), sum(gap < 0.0 for gap in self.gaps)
        if n in (agree, disagree):
            return f"{n} of {n} seeds {'agree' if agree else 'disagree'}"
        return f"seeds differ ({agree} of {n} agree)"


def findings(results: list[RecipeResult]) -> list[Finding]:
    """Every published ordering of two recipes that have finished runs of the same seeds here; a run that diverged decides nothing."""
    by_label = {result.label: result for result in results}
    here = [ordering for ordering in PUBLISHED if ordering.better in by_label and ordering.worse in by_label]
    found = [Finding(ordering, differences(by_label[ordering.worse], by_label[ordering.better])) for ordering in here]
    return [finding for finding in found if finding.gaps]
