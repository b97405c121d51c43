"""What a run says when it ends: summary.json, from which `cluster.summary` makes the page a person reads."""

from __future__ import annotations

import json
from statistics import mean
from typing import TYPE_CHECKING, Any

from data_pipeline.files import read_object, write_text
from distributed.errors import RunError
from distributed.figures import finite, perplexity, whole_run
from distributed.goodput import Ledger, account
from distributed.json_lines import read_lines
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.scored_windows import scored_windows

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest
    from distributed.metrics import Metrics


def build_summary(
    run: RunFolder,
    recipe: Recipe,
    metrics: Metrics,
    manifest: Manifest,
    baselines: dict[str, dict[str, float]],
    held_out: dict[str, float],
    *,
    step: int,
    checkpoint: str | None = None,
    parameters: int | None = None,
) -> dict[str, Any]:
    """Gather the end of a run and write it to summary.json (call on rank 0, after the last `metrics.log`).

    Args:
        manifest: of the corpus.
        baselines: by source, nats a token of the `unigram` and `bigram` models over the windows that `held_out` was scored over.
        held_out: the model's held-out nats a token, by source.
        step: steps done.
        checkpoint: name of the newest checkpoint kept.
        parameters: stored parameters of the model.

    Returns:
        The figures as written. Losses of model and baselines are means over sources; positive `below_unigram` is good, negative
        `above_bigram` means better than the bigram model.
    """
    lines = run_lines(run)
    last = metrics.figures or next((line for line in reversed(lines) if "loss" in line), {})  # the run may have died after its last step
    over_run = whole_run(lines)
    loss = mean(held_out.values()) if held_out else None
    summary = {
        "run": run.name,
        "state": "finished" if step >= recipe.train.steps else "stopped",
        "step": step,
        "steps": recipe.train.steps,
        "world": last.get("world"),
        "expert_parallel": recipe.expert_parallel.size,
        "parameters": parameters,
        "tokens_seen": step * recipe.train.global_batch * recipe.data.seq_len,
        "corpus": manifest.digest,
        "losses": {
            "train": last.get("loss"),
            "held_out": loss,
            "held_out_perplexity": None if loss is None else perplexity(loss),
            "by_source": held_out,
            "windows": scored_windows(manifest.windows("held_out"), recipe.validation.windows),
            **compare(loss, baselines),
        },
        "speed": {name: over_run.get(name) for name in ("tokens_per_second", "step_seconds", "model_flop_use")},
        "depth": over_run.get("depth", {}),
        "parts": over_run.get("parts", {}),
        "load": last.get("load", {}),
        "use": last.get("use", {}),
        "memory": {name: last.get(name) for name in ("host_bytes_max", "device_bytes_max")},
        "goodput": account(Ledger(run.path / "goodput.jsonl").events()),
        "checkpoint": checkpoint,
    }
    summary = finite(summary)
    write_text(run.summary_path, json.dumps(summary, indent=1))
    return summary


def says_finished(run: RunFolder, step: int) -> bool:
    """Whether the summary speaks of this last step, rather than of an earlier stop or not at all."""
    try:
        summary = read_summary(run)
    except RunError:
        return False
    return bool(summary.get("state") == "finished" and summary.get("step") == step)


def run_lines(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, oldest first; one that a crash cut is passed over."""
    return read_lines(run.metrics_path)


def compare(loss: float | None, baselines: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """The held-out loss beside the baselines, nats a token; all are means over sources."""
    sources = baselines.values()
    unigram, bigram = (mean(source[name] for source in sources) if sources else None for name in ("unigram", "bigram"))
    return {
        "unigram": unigram,
        "bigram": bigram,
        "below_unigram": None if loss is None or unigram is None else unigram - loss,
        "above_bigram": None if loss is None or bigram is None else loss - bigram,
    }


def read_summary(run: RunFolder) -> dict[str, Any]:
    """The summary of a run that ended.

    Raises:
        RunError: there is none, or it is damaged.
    """
    if not run.summary_path.exists():
        raise RunError(f"run '{run.name}' has no summary yet: it is written when a run finishes or stops")
    if found := read_object(run.summary_path):
        return found
    raise RunError(f"{run.summary_path} is damaged; `eval {run.name}` measures the held-out loss again")
