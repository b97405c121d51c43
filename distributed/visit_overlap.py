"""How much the visits of a shared layer differ in what a token chooses, from their records.

Overlap of two visits: the mean over tokens of |A & B| / |A | B|, A and B being what the token chose in each (arXiv 2405.16039
appendix A.6, fig. 11): 1 the same experts, 0 none in common. Taken between a visit and the one before it of the same layer.

Path diversity of a layer: how many different experts a token meets over all visits, over how many it meets in one (means over
tokens): 1 if every visit takes the same experts, the number of visits if no two share any. Work on looped experts reports the
two numbers (arXiv 2610.01153: 14.6 over 9 loops of 6) or a quotient Psi whose formula was not at hand (arXiv 2609.40316).

Shape suffixes: V visits, L layers, N tokens, P picks of a token; R visits of one layer, S = R - 1, Q = R*P.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class VisitOverlap:
    """Adds up over tokens; `sums` of several ranks or batches may be added, and `overlaps` and `path_diversity` read them."""

    def __init__(self, schedule: Sequence[int], device: torch.device) -> None:
        n_layers = max(schedule) + 1
        self._visits = [[visit for visit, at in enumerate(schedule) if at == layer] for layer in range(n_layers)]
        self.sums = {
            "tokens": torch.zeros(1, dtype=torch.float64, device=device),
            "overlap_V": torch.zeros(len(schedule), dtype=torch.float64, device=device),
            "chosen_V": torch.zeros(len(schedule), dtype=torch.float64, device=device),
            "met_L": torch.zeros(n_layers, dtype=torch.float64, device=device),
        }

    def add(self, picks: Sequence[Tensor | None]) -> None:
        """Count tokens: what they picked in every visit, int64 [N, P], None where nothing is chosen or the visit is not made.

        Picks may repeat.
        """
        self.sums["tokens"] += next((len(picked_NP) for picked_NP in picks if picked_NP is not None), 0)
        for layer, visits in enumerate(self._visits):
            made = [visit for visit in visits if picks[visit] is not None]
            chosen = [picked_NP for visit in made if (picked_NP := picks[visit]) is not None]
            if not chosen:
                continue
            found = compare(chosen)
            self.sums["chosen_V"][made] += found.chosen_NR.double().sum(dim=0)
            self.sums["met_L"][layer] += found.met_N.double().sum()
            either_NS = found.chosen_NR[:, :-1] + found.chosen_NR[:, 1:] - found.both_NS
            self.sums["overlap_V"][made[1:]] += (found.both_NS.double() / either_NS).sum(dim=0)

    def overlaps(self, sums: dict[str, Tensor]) -> list[float | None]:
        """By visit; None for a layer's first visit and where nothing is chosen."""
        tokens, chosen = sums["tokens"].item(), sums["chosen_V"].tolist()
        later = {visit for visits in self._visits for visit in visits[1:]}
        values = enumerate(sums["overlap_V"].tolist())
        return [value / tokens if visit in later and chosen[visit] > 0 else None for visit, value in values]

    def path_diversity(self, sums: dict[str, Tensor]) -> list[float | None]:
        """By layer; None for one visited once and where nothing is chosen."""
        found: list[float | None] = []
        for visits, met in zip(self._visits, sums["met_L"].tolist(), strict=True):
            chosen = [value for value in sums["chosen_V"][visits].tolist() if value > 0]
            found.append(met * len(chosen) / sum(chosen) if len(chosen) > 1 else None)
        return found


class Compared(NamedTuple):
    """Different experts of a token in every visit, both in a visit and the next, and in any visit; int64."""

    chosen_NR: Tensor
    both_NS: Tensor
    met_N: Tensor


def compare(picks: Sequence[Tensor]) -> Compared:
    """What tokens picked in the R visits of a layer, int64 [N, P] each. One sort: (expert, visit) pairs lie beside their likes."""
    n_visits = len(picks)
    pair_NQ = torch.cat([picked_NP * n_visits + visit for visit, picked_NP in enumerate(picks)], dim=1).sort(dim=1).values
    before_NQ = F.pad(pair_NQ[:, :-1], (1, 0), value=-n_visits)  # an expert that is none
    visit_NQ = pair_NQ % n_visits
    new_NQ = pair_NQ != before_NQ
    again_NQ = pair_NQ == before_NQ + 1  # of a first visit this says something of another expert, and is cut off below
    met_N = (pair_NQ // n_visits != before_NQ // n_visits).sum(dim=1)
    nothing_NR = pair_NQ.new_zeros(len(pair_NQ), n_visits)
    chosen_NR = nothing_NR.scatter_add(1, visit_NQ, new_NQ.long())
    return Compared(chosen_NR, nothing_NR.scatter_add(1, visit_NQ, again_NQ.long())[:, 1:], met_N)
