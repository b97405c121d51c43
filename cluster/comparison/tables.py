"""The tables of a comparison's report, in their order."""

from __future__ import annotations

from cluster.comparison.matching import NAMES, Measure
from cluster.comparison.orderings import findings
from cluster.comparison.outcome import outcome_table
from cluster.comparison.pairs import reference
from cluster.comparison.results import RecipeResult
from cluster.comparison.table import Table, number

# Figures of a run's last logging interval by their places in summary.json, and what a reader calls them.
USE = {
    ("load", "dead_share"): "dead in a visit",
    ("load", "never_used_share"): "never used",
    ("load", "routing_entropy"): "routing entropy (1: even)",
    ("load", "unevenness"): "unevenness (KL, nats)",
    ("load", "expert_imbalance"): "busiest over mean",
    ("use", "overlap"): "overlap with the visit before",
    ("use", "path_diversity"): "path diversity",
    ("use", "gate_usage"): "used by gates",
    ("use", "gate_unevenness"): "unevenness of gates (KL, nats)",
}


def tables(results: list[RecipeResult], measure: Measure | None) -> list[Table]:
    """All that have rows."""
    made = [outcome_table(results), cost_table(results, measure), use_table(results), orderings_table(results), trouble_table(results)]
    return [table for table in made if table.rows]


def cost_table(results: list[RecipeResult], measure: Measure | None) -> Table:
    """Sizes, each beside the reference's."""
    beside = f"beside {reference(results).label}"
    header = ["recipe", "parameters", beside, "active, every visit", "MACs a token (forward)", beside]
    base, matched = reference(results).cost, "Not matched" if measure is None else f"Matched by {NAMES[measure]}"
    rows = [
        [
            result.label,
            f"{result.cost.parameters:,}",
            f"{result.cost.parameters / base.parameters - 1.0:+.1%}",
            f"{result.cost.active:,}",
            _millions(result),
            f"{result.cost.macs_per_token / base.macs_per_token - 1.0:+.1%}",
        ]
        for result in results
    ]
    by_macs = sorted(results, key=lambda result: result.cost.macs_per_token)
    words = (
        f"{matched}. Exact, counted from the configuration (model/accounting.py). Active parameters are those that a token meets; a shared "
        f"layer counts at each of its visits. Multiply-accumulates a token go from {_millions(by_macs[0])} ({by_macs[0].label}) to "
        f"{_millions(by_macs[-1])} ({by_macs[-1].label})."
    )
    if any(model.halting.kind != "none" or model.depth.sample is not None for model in (result.recipe.model for result in results)):
        words += " Multiply-accumulates are those of depth.repeats repeats, as if no token halted; the plot counts those that were made."
    return Table("Sizes", words, header, rows)


def _millions(result: RecipeResult) -> str:
    return f"{result.cost.macs_per_token / 1e6:,.2f} M"


def use_table(results: list[RecipeResult]) -> Table:
    """How evenly experts and rows of tables are used, of recipes that choose among them."""
    rows = [
        [result.label, *(number(result.average(*place), ".3f") for place in USE)]
        for result in results
        if any(result.figures(*place) for place in USE)
    ]
    words = (
        "Mean over visits and seeds. Loads are of the last logging interval; overlap, paths and gates of its last micro-batch, over whose "
        "few tokens a large table looks less used and less even than it is (`./launch.sh eval RUN --experts` is exact)."
    )
    return Table("Expert use", words, ["recipe", *USE.values()], rows)


def orderings_table(results: list[RecipeResult]) -> Table:
    """Published orderings beside ours."""
    all_found = findings(results)
    rows = [[found.ordering.better, found.ordering.worse, found.ordering.source, f"{found.gap:+.4f}", found.verdict] for found in all_found]
    n_seeds = max((len(found.gaps) for found in all_found), default=1)
    words = (
        "The paper has the first below the second in loss. Gap: nats a token by which the second is above the first here, mean over seeds. "
        "Seeds are compared one by one, as they took the same samples, and counted; that is no test of significance: between equal "
        f"recipes, {n_seeds} seeds have equal signs by chance {0.5 ** (n_seeds - 1):.0%} of the time. Sizes, data and lengths of training "
        "are not the papers'."
    )
    header = ["paper: better", "paper: worse", "source", "gap here", "this comparison"]
    return Table("Orderings of the papers", words, header, rows, text=(0, 1, 2, 4))


def trouble_table(results: list[RecipeResult]) -> Table:
    """Runs that have not finished."""
    rows = [[result.label, str(run.seed), run.trouble] for result in results for run in result.runs if run.trouble is not None]
    words = "The figures above leave these runs out; the curves show what they have."
    return Table("Not finished", words, ["recipe", "seed", "how it stands"], rows, text=(0, 2))
