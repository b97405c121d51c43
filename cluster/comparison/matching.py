"""By what the recipes of a comparison are matched, and by how much each is off."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError
from distributed.recipe import Recipe
from model.accounting import macs_per_token, parameters

Measure = Literal["params", "macs"]
NAMES: dict[Measure, str] = {"params": "parameters", "macs": "multiply-accumulates a token"}


@dataclass(frozen=True)
class Cost:
    """Exact counts of one recipe: stored and active parameters, and forward multiply-accumulates a token, head included."""

    parameters: int
    active: int
    macs_per_token: float

    def measured(self, measure: Measure) -> float:
        """The number that is matched."""
        return self.parameters if measure == "params" else self.macs_per_token


def cost_of(recipe: Recipe) -> Cost:
    """Of the model in windows of `data.seq_len`."""
    counts = parameters(recipe.model)
    return Cost(counts.stored, counts.active, macs_per_token(recipe.model, recipe.data.seq_len))


def check_matched(costs: dict[str, Cost], paths: dict[str, Path], measure: Measure, tolerance: float) -> None:
    """No recipe is more than `tolerance` (a share) above the smallest. `costs`, and `paths` of the files, by label.

    Raises:
        ClusterError: one is; the message names the two furthest apart, and the command that matches them.
    """
    by_size = sorted(costs, key=lambda label: costs[label].measured(measure))
    smallest, largest = by_size[0], by_size[-1]
    low, high = costs[smallest].measured(measure), costs[largest].measured(measure)
    if high > low * (1.0 + tolerance):
        mend = shlex.join(["./launch.sh", "match", str(paths[largest]), "--to", str(paths[smallest]), "--by", measure])
        raise ClusterError(
            f"recipe '{largest}' has {high:,.0f} {NAMES[measure]}, {high / low - 1.0:.1%} above '{smallest}' ({low:,.0f}), "
            f"but the comparison is matched by {measure} to {tolerance:.1%}; "
            f"make a recipe that is ({mend}), or allow it with --unmatched"
        )
