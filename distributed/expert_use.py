"""How a model uses what its feed-forwards choose among: exact counts over any set of tokens, from the records of its visits.

A slot's gates are judged beside its routes: usage and unevenness of arXiv 2407.04153 (table 2) are of gates over the C4 validation
set. Over few tokens usage reads too low and unevenness too high where rows are many.

Shape suffixes: V visits, L layers, N tokens, P picks of a token, E experts, rows or units chosen among.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distributed.load import gate_mass, imbalance, unevenness, used_share
from distributed.visit_overlap import VisitOverlap
from model.config import ModelConfig
from model.router import Record

_TOKENS_AT_A_TIME = 4096


class ExpertUse:
    """One rank's counts, on the device until they are summed over the ranks.

    Nothing is counted where tokens may halt: the visits' records are then of some tokens only. `most`: slots with more candidates are
    left out.

    Args:
        config: of the model whose records are counted.
        device: where they lie.
        repeats: how often the passes go through the group, where that is more than the model was trained for.
    """

    def __init__(self, config: ModelConfig, device: torch.device, repeats: int | None = None, most: int | None = None) -> None:
        self._layers = config.depth.layers_by_number(repeats)
        counted = config.halting.kind == "none"
        candidates = [config.feed_forward_of(layer).candidates * counted for layer in self._layers]
        self.candidates = [n if most is None or n <= most else 0 for n in candidates]
        self._routes = [torch.zeros(n, dtype=torch.int64, device=device) for n in self.candidates]
        self._gates = [torch.zeros(n, dtype=torch.float64, device=device) for n in self.candidates]
        self._overlap = VisitOverlap(self._layers, device)

    def add(self, records: Sequence[Record], scored_N: Tensor | None = None) -> None:
        """Count what the tokens of a batch chose, or those of them that `scored_N`, bool, says: padding is no use of an expert."""
        if not any(self.candidates):
            return
        pairs = zip(records, self.candidates, strict=True)
        picks = [record["feed_forward"].flatten(1) if n and record else None for record, n in pairs]  # empty: a visit not made
        gates = [record.get("gates", {}).get("feed_forward") for record in records]
        n_tokens = next(len(picked_NP) for picked_NP in picks if picked_NP is not None)
        device = self._routes[0].device
        rows = torch.arange(n_tokens, device=device) if scored_N is None else scored_N.nonzero().squeeze(1)
        for some in rows.split(_TOKENS_AT_A_TIME):
            chosen = [None if picked_NP is None else picked_NP[some] for picked_NP in picks]
            self._overlap.add(chosen)
            for visit, picked_NP in enumerate(chosen):
                if picked_NP is None:
                    continue
                self._routes[visit] += torch.bincount(picked_NP.flatten(), minlength=self.candidates[visit])
                if gates[visit] is not None:
                    self._gates[visit] += gate_mass(picked_NP, gates[visit].flatten(1)[some], self.candidates[visit])

    def sums(self) -> dict[str, Tensor]:
        """What may be added over ranks, by name; the same names and shapes on every rank."""
        routes = {f"routes_{visit}": routes_E for visit, routes_E in enumerate(self._routes)}
        gates = {f"gates_{visit}": gates_E for visit, gates_E in enumerate(self._gates)}
        return routes | gates | self._overlap.sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        """Plain figures of `sums` of all ranks, one dict a visit and one a layer that chooses; see `visit_figures`."""
        overlaps, diversities = self._overlap.overlaps(sums), self._overlap.path_diversity(sums)
        visits, layers = [], []
        for visit, layer in enumerate(self._layers):
            if self.candidates[visit] and sums[f"routes_{visit}"].any():
                found = visit_figures(sums[f"routes_{visit}"], sums[f"gates_{visit}"])
                visits.append({"visit": visit, "layer": layer, **found, "overlap": overlaps[visit]})
        for layer in sorted({visit["layer"] for visit in visits}):
            own = [visit for visit, at in enumerate(self._layers) if at == layer]
            routes_E, gates_E = (torch.stack([sums[f"{name}_{visit}"] for visit in own]).sum(0) for name in ("routes", "gates"))
            layers.append({"layer": layer, **visit_figures(routes_E, gates_E), "path_diversity": diversities[layer]})
        return {"tokens": int(sums["tokens"].item()), "visits": visits, "layers": layers}


def visit_figures(routes_E: Tensor, gates_E: Tensor) -> dict[str, Any]:
    """How evenly routes and gates lie.

    Returns:
        `candidates`, of which `dead` got no route; `usage`, the share that got one; `unevenness`, KL of routes to uniform in nats (0
        even, ln E one has all); `imbalance`, the busiest over the mean; `gate_usage` and `gate_unevenness`, None where no gates are kept.
    """
    gated = bool(gates_E.sum() > 0)
    return {
        "candidates": len(routes_E),
        "dead": int((routes_E == 0).sum()),
        "usage": used_share(routes_E),
        "unevenness": unevenness(routes_E),
        "imbalance": imbalance(routes_E).item(),
        "gate_usage": used_share(gates_E) if gated else None,
        "gate_unevenness": unevenness(gates_E) if gated else None,
    }
