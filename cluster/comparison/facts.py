"""What stands above the tables of a report: command, terms, corpus and machines, a line each."""

from __future__ import annotations

from cluster.comparison.machine import machine_words
from cluster.comparison.results import RecipeResult
from distributed.recipe import Recipe

DIGEST_DIGITS = 12


def facts(command: str, results: list[RecipeResult]) -> list[str]:
    """The lines; `code` is quoted as in markdown."""
    runs = [run for result in results for run in result.runs]
    seeds = sorted({run.seed for run in runs})
    corpora = sorted({run.summary["corpus"] for run in runs if run.finished})
    machines = sorted({machine_words(run.machine) for run in runs if run.machine})
    return [
        f"Command: `{command}`",
        *terms_words(results[0].recipe, seeds),
        learning_rate_words(results),
        *(f"Corpus: digest of its manifest {digest[:DIGEST_DIGITS]}" for digest in corpora),
        *(f"Machine: {words}" for words in machines),
    ]


def terms_words(recipe: Recipe, seeds: list[int]) -> list[str]:
    """What all recipes have alike."""
    train, data = recipe.train, recipe.data
    sources = [f"{one.name} ({one.kind}" + (f", {one.max_megabytes:g} MB)" if one.max_megabytes else ")") for one in data.sources]
    varied = {
        "shuffled": "initial weights, dropout and sample order",
        "streams": "initial weights and dropout; streams have one sample order",
    }[data.order]
    tokens = f"{train.steps * train.global_batch * data.seq_len:,} tokens"
    vocabulary = f"vocabulary {recipe.model.vocab_size:,} ({data.tokenizer.kind})"
    return [
        f"Data: {', '.join(sources)}; {vocabulary}, windows of {data.seq_len} tokens",
        f"Training: {train.steps:,} steps of {train.global_batch} windows, {tokens}, precision {train.precision}, one process a run",
        f"Seeds: {', '.join(map(str, seeds))} ({varied}; equal over the recipes)",
    ]


def learning_rate_words(results: list[RecipeResult]) -> str:
    """Whether one learning rate serves all recipes."""
    rates = {result.recipe.train.lr for result in results}
    if len(rates) > 1:
        return "Learning rate: each recipe has its own (column lr)"
    return f"Learning rate: {rates.pop():g} for all recipes, not tuned recipe by recipe"
