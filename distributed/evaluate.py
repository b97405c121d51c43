"""A run's checkpoint scored on its held-out windows: which windows, with how many repeats, and what a person reads of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.manifest import check
from data_pipeline.windows import Windows
from distributed.errors import RunError
from distributed.expert_use import ExpertUse
from distributed.figures import perplexity
from distributed.held_out import Scoring, held_out_loss
from distributed.protocols import check_protocol, windows_counted
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder, data_folder
from distributed.trained import Trained, load_trained
from model.depth_override import check_repeats


@dataclass(frozen=True)
class HeldOut:
    """The held-out windows of a source that a protocol scores: the first `counted`.

    `text_bytes` are those of all its text, of which only the very first token's are not predicted; None where a part is scored.
    """

    source: str
    windows: Windows
    counted: int
    text_bytes: int | None


def held_out_of(recipe: Recipe, protocol: str = "tail", max_windows: int | None = None) -> list[HeldOut]:
    """What `protocol` scores of a recipe's sources.

    Raises:
        RunError: no such protocol, or fewer windows than its batch. DataError: the data are not those of the recipe.
    """
    check_protocol(protocol)
    folder = data_folder(recipe)
    manifest = check(folder, recipe.data)
    found = []
    for source in recipe.data.sources:
        windows = Windows(folder, "held_out", source.name)
        counted = windows_counted(protocol, windows, source.name, max_windows)
        text_bytes = manifest.sources[source.name].splits["held_out"].text_bytes if counted == len(windows) else None
        found.append(HeldOut(source.name, windows, counted, text_bytes))
    return found


def evaluate_run(
    run: RunFolder,
    step: int | None = None,
    batch: int = 16,
    protocol: str = "tail",
    max_windows: int | None = None,
    repeats: Sequence[int] = (),
    experts: bool = False,
) -> list[dict[str, Any]]:
    """Held-out perplexity of a run's checkpoint, on this machine in one process.

    Args:
        run: a run with a checkpoint.
        step: which checkpoint; None: the newest.
        batch: windows a call (changes no figure).
        protocol: one of `distributed.protocols.PROTOCOLS`.
        max_windows: the first so many windows of a source in place of the protocol's number (peS2o: 4111).
        repeats: how many times to go through the model's group of layers, one evaluation each; none given: as configured.
        experts: also count what the tokens of all sources choose.

    Returns:
        For every number of repeats {"run", "step", "protocol", "repeats", "sources": {name: figures}, "total": figures}; figures
        are nats, perplexity, tokens, windows, and bits_per_byte where every byte of the source was scored and their number is known.
        With `experts` also "experts", see `ExpertUse.figures`.

    Raises:
        RunError: no such checkpoint or protocol, fewer windows than the protocol's batch, or no experts to count. DataError: the
            data are not those of the run. ModelError: more repeats than the model has parameters for.
    """
    recipe = run.recipe()
    numbers = list(repeats) or [recipe.model.depth.repeats]
    for number in numbers:
        check_repeats(recipe.model, number)
    held_out = held_out_of(recipe, protocol, max_windows)
    trained = load_trained(run, step)
    which = {"run": run.name, "step": trained.step, "protocol": protocol}
    return [{**which, "repeats": number, **_figures(trained, held_out, batch, number, experts)} for number in numbers]


def _figures(trained: Trained, held_out: Sequence[HeldOut], batch: int, repeats: int, experts: bool) -> dict[str, Any]:
    """What one number of repeats gives, by source and in total."""
    use = _expert_use(trained, repeats) if experts else None
    end_of_document = trained.tokenizer.end_of_document if trained.recipe.data.document_mask else None
    sources = {}
    for part in held_out:
        scoring = Scoring(batch, part.counted, end_of_document, repeats, use)
        sources[part.source] = _with_rates(held_out_loss(trained.model, part.windows, scoring, trained.device), part.text_bytes)
    figures = {"sources": sources, "total": _pooled(list(sources.values()))}
    return figures if use is None else {**figures, "experts": use.figures(use.sums())}


def _expert_use(trained: Trained, repeats: int) -> ExpertUse:
    model = trained.recipe.model
    use = ExpertUse(model, trained.device, repeats)
    if not any(use.candidates):
        why = (
            f"model.feed_forward is '{model.feed_forward.kind}'"
            if model.halting.kind == "none"
            else f"model.halting is '{model.halting.kind}'"
        )
        raise RunError(f"run '{trained.recipe.name}' has no experts to count: {why}; leave --experts out")
    return use


def _pooled(results: list[dict[str, Any]]) -> dict[str, Any]:
    """All sources as one set: every token weighs the same."""
    total = {name: sum(result[name] for result in results) for name in ("total_nats", "tokens", "windows")}
    nats = total["total_nats"] / total["tokens"] if total["tokens"] else math.nan
    n_bytes = sum(result.get("bytes", 0) for result in results) if all("bytes" in result for result in results) else None
    return _with_rates({"nats": nats, **total}, n_bytes)


def _with_rates(result: dict[str, Any], n_bytes: int | None) -> dict[str, Any]:
    """Perplexity a token and, where the bytes are known, bits a byte."""
    figures = {**result, "perplexity": perplexity(result["nats"])}
    if n_bytes:
        figures |= {"bytes": n_bytes, "bits_per_byte": result["total_nats"] / math.log(2) / n_bytes}
    return figures
