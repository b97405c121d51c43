"""Recipes beside one another, seed by seed: runs of one seed took the same samples, so each pair is a comparison of its own."""

from __future__ import annotations

from cluster.comparison.results import RecipeResult

REFERENCE = "dense"


def reference(results: list[RecipeResult]) -> RecipeResult:
    """What the others are put beside: the recipe named `dense`, else the first."""
    return next((result for result in results if result.label == REFERENCE), results[0])


def differences(result: RecipeResult, other: RecipeResult) -> list[float]:
    """Nats a token of `result` less those of `other`, for every seed with which both finished and neither diverged."""
    nats, others = result.nats_by_seed, other.nats_by_seed
    return [nats[seed] - others[seed] for seed in nats if seed in others]
