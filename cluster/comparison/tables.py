"""The tables of a comparison's report, as rows of words: the markdown and the HTML page show the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev

from cluster.comparison.matching import NAMES, Measure
from cluster.comparison.orderings import findings
from cluster.comparison.results import RecipeResult
from distributed.figures import perplexity

DASH = "-"
DIVERGED = "diverged"
# Figures of a run's last logging interval, by their names in summary.json, and what a reader calls them.
USE = {
    "dead_share": "dead in a visit",
    "never_used_share": "never used",
    "routing_entropy": "routing entropy (1: even)",
    "expert_imbalance": "busiest over mean",
}


@dataclass(frozen=True)
class Table:
    """A table and what stands above it; `text` are its columns of words, the others hold figures."""

    title: str
    words: str
    header: list[str]
    rows: list[list[str]]
    text: tuple[int, ...] = (0,)


def tables(results: list[RecipeResult], measure: Measure | None) -> list[Table]:
    """All that have rows, in the order of the report."""
    made = [outcome_table(results), cost_table(results, measure), use_table(results), orderings_table(results), trouble_table(results)]
    return [table for table in made if table.rows]


def outcome_table(results: list[RecipeResult]) -> Table:
    """Held-out loss of every recipe, the best first; those without one last."""
    header = [
        "recipe",
        "held-out perplexity",
        "± over seeds",
        "each seed",
        "nats a token",
        "below unigram",
        "lr",
        "tokens/s",
        "peak memory",
    ]

    def nats(result: RecipeResult) -> float:
        found = result.average("losses", "held_out")
        return math.inf if found is None else found

    words = (
        "At the last step, over the same held-out windows; means leave out seeds that diverged. ± is the standard deviation of the seeds' "
        "perplexities. Memory is the largest run's: of the process, or on the accelerator where there is one."
    )
    return Table("Outcome", words, header, [_outcome(result) for result in sorted(results, key=nats)])


def _outcome(result: RecipeResult) -> list[str]:
    nats = result.figures("losses", "held_out")
    each = [perplexity(value) for value in nats]
    seeds = [DIVERGED if run.held_out is None else f"{perplexity(run.held_out):.2f}" for run in result.finished]
    peak = result.figures("memory", "device_bytes_max")
    peak = peak if any(peak) else result.figures("memory", "host_bytes_max")
    return [
        result.label,
        DIVERGED if seeds and not each else _number(mean(each) if each else None, ".2f"),
        _number(stdev(each) if len(each) > 1 else None, ".2f"),
        ", ".join(seeds) or DASH,
        _number(mean(nats) if nats else None, ".4f"),
        _number(result.average("losses", "below_unigram"), ".3f"),
        f"{result.recipe.train.lr:g}",
        _number(result.average("speed", "tokens_per_second"), ",.0f"),
        f"{max(peak) / 2**20:,.0f} MiB" if peak else DASH,
    ]


def cost_table(results: list[RecipeResult], measure: Measure | None) -> Table:
    """Sizes, each beside the first recipe's."""
    header = ["recipe", "parameters", "beside the first", "active", "MACs a token (forward)", "beside the first"]
    first, matched = results[0].cost, "Not matched" if measure is None else f"Matched by {NAMES[measure]}"
    rows = [
        [
            result.label,
            f"{result.cost.parameters:,}",
            f"{result.cost.parameters / first.parameters - 1.0:+.1%}",
            f"{result.cost.active:,}",
            f"{result.cost.macs_per_token / 1e6:,.2f} M",
            f"{result.cost.macs_per_token / first.macs_per_token - 1.0:+.1%}",
        ]
        for result in results
    ]
    words = f"{matched}. Exact, counted from the configuration (model/accounting.py)."
    if any(model.halting.kind != "none" or model.depth.sample is not None for model in (result.recipe.model for result in results)):
        words += " Multiply-accumulates are those of depth.repeats repeats, as if no token halted; the plot counts those that were made."
    return Table("Sizes", words, header, rows)


def use_table(results: list[RecipeResult]) -> Table:
    """How evenly experts are used, of recipes whose experts are routed."""
    rows = [
        [result.label, *(_number(result.average("load", name), ".3f") for name in USE)]
        for result in results
        if result.figures("load", "dead_share")
    ]
    words = "In the last logging interval, mean over visits and seeds, of recipes whose feed-forward experts are routed."
    return Table("Expert use", words, ["recipe", *USE.values()], rows)


def orderings_table(results: list[RecipeResult]) -> Table:
    """Published orderings beside ours."""
    rows = [
        [found.ordering.better, found.ordering.worse, found.ordering.source, f"{found.gap:+.4f}", str(found.seeds), found.verdict]
        for found in findings(results)
    ]
    words = (
        "The paper has the first below the second in loss. Gap: nats a token by which the second is above the first here. Seeds are "
        "compared one by one, as they took the same samples. Sizes, data and lengths of training are not the papers'."
    )
    header = ["better", "worse", "source", "gap here", "seeds", "this comparison"]
    return Table("Orderings of the papers", words, header, rows, text=(0, 1, 2, 5))


def trouble_table(results: list[RecipeResult]) -> Table:
    """Runs that have not finished."""
    rows = [[result.label, str(run.seed), run.trouble] for result in results for run in result.runs if run.trouble is not None]
    words = "The figures above leave these runs out; the curves show what they have."
    return Table("Not finished", words, ["recipe", "seed", "how it stands"], rows, text=(0, 2))


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)
