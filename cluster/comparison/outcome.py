"""The first table of a comparison's report: held-out loss of every recipe, and beside the reference with the same seeds."""

from __future__ import annotations

import math
from statistics import mean, stdev

from cluster.comparison.pairs import differences, reference
from cluster.comparison.results import RecipeResult
from cluster.comparison.table import DASH, Table, number
from distributed.figures import perplexity
from distributed.scored_windows import windows_words

DIVERGED = "diverged"


def outcome_table(results: list[RecipeResult]) -> Table:
    """The best recipe first; those without a loss last."""
    beside = reference(results)
    header = [
        "recipe",
        "held-out perplexity",
        "± over seeds",
        "each seed",
        "nats a token",
        f"nats beside {beside.label}",
        "below unigram",
        "lr",
        "tokens/s",
        "peak memory",
    ]

    def nats(result: RecipeResult) -> float:
        found = result.average("losses", "held_out")
        return math.inf if found is None else found

    rows = [_row(result, beside) for result in sorted(results, key=nats)]
    return Table("Outcome", _words(results, beside), header, rows)


def _words(results: list[RecipeResult], beside: RecipeResult) -> str:
    scored = sorted({windows_words(run.summary["losses"]["windows"]) for result in results for run in result.finished})
    return (
        f"At the last step, over the same held-out text ({'; '.join(scored) or 'no run has finished'}), which the unigram model is scored "
        "over too; means leave out seeds that diverged. ± is the standard deviation over seeds, of their perplexities and of their "
        f"differences. Nats beside {beside.label}: a seed's nats a token less those of {beside.label} with the same seed, mean over seeds. "
        "Memory is the largest run's: of the process, or on the accelerator where there is one."
    )


def _row(result: RecipeResult, beside: RecipeResult) -> list[str]:
    nats = result.figures("losses", "held_out")
    each = [perplexity(value) for value in nats]
    seeds = [DIVERGED if run.held_out is None else f"{perplexity(run.held_out):.2f}" for run in result.finished]
    peak = result.figures("memory", "device_bytes_max")
    peak = peak if any(peak) else result.figures("memory", "host_bytes_max")
    return [
        result.label,
        DIVERGED if seeds and not each else number(mean(each) if each else None, ".2f"),
        number(stdev(each) if len(each) > 1 else None, ".2f"),
        ", ".join(seeds) or DASH,
        number(mean(nats) if nats else None, ".4f"),
        DASH if result is beside else _spread(differences(result, beside)),
        number(result.average("losses", "below_unigram"), ".3f"),
        f"{result.recipe.train.lr:g}",
        number(result.average("speed", "tokens_per_second"), ",.0f"),
        f"{max(peak) / 2**20:,.0f} MiB" if peak else DASH,
    ]


def _spread(values: list[float]) -> str:
    """Mean, and standard deviation where there are two."""
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):+.4f}{deviation}" if values else DASH
