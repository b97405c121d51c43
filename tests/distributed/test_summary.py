"""summary.json: comparison with the baselines, figures over the whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metrics_work import STEPS, TOKENS, HandClock, loads, lone, recipe

from data_pipeline.manifest import Manifest
from distributed.clock import PARTS, HostTimeline, StepClock
from distributed.errors import RunError
from distributed.figures import whole_run
from distributed.metrics import Metrics
from distributed.run_folder import RunFolder
from distributed.scored_windows import scored_windows, windows_words
from distributed.summary import build_summary, compare, read_summary

BASELINES = {"python": {"unigram": 6.0, "bigram": 4.0}}


def manifest(**n_windows: int) -> Manifest:
    """Of a corpus whose sources have so many held-out windows."""
    split = {"documents": 1, "text_bytes": 1, "tokens": 1}
    source = {"digest": "", "documents": 2, "exact_duplicates": 0, "near_duplicates": 0, "over_budget": 0, "overlap": 0.0}
    tokenizer = {"kind": "", "file": "", "vocab_size": 7, "document_end": "none", "end_of_document": None, "digest": ""}
    return Manifest.model_validate(
        {
            "format": 2,
            "recipe": {},
            "seq_len": 4,
            "token_bytes": 2,
            "tokenizer": tokenizer,
            "sources": {
                name: source | {"splits": {"train": split | {"windows": 90}, "held_out": split | {"windows": held_out}}}
                for name, held_out in n_windows.items()
            },
            "indices": {},
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "small")
    folder.create(recipe())
    return folder


def finished_metrics(run: RunFolder) -> Metrics:
    """Three logged steps: the first two take a second each, the third four."""
    from types import SimpleNamespace

    import torch

    hand = HandClock()
    metrics = Metrics(run, recipe(), lone(), 0, StepClock(torch.device("cpu"), HostTimeline(hand)))
    for step in range(1, STEPS + 1):
        hand.seconds += 1.0 if step < STEPS else 4.0
        metrics.observe(SimpleNamespace(loads=loads(0), records=[]), TOKENS)
        metrics.step(step, torch.tensor(3.0), torch.tensor(0.0), grad_norm=1.0, lr=1.0, tokens=TOKENS, repeats=2)
        if step > 1:
            metrics.log(step)
    metrics.close()
    return metrics


@pytest.mark.parametrize(("loss", "below", "above"), [(4.5, 1.5, 0.5), (3.5, 2.5, -0.5), (6.25, -0.25, 2.25)])
def test_gaps_to_the_baselines(loss: float, below: float, above: float) -> None:
    figures = compare(loss, BASELINES)
    assert (figures["below_unigram"], figures["above_bigram"]) == (below, above)


def test_no_loss_no_gap() -> None:
    assert compare(None, BASELINES)["below_unigram"] is None
    assert compare(3.0, {})["above_bigram"] is None


def test_gaps_of_several_sources_are_pooled_as_the_loss_is(run: RunFolder) -> None:
    baselines = {"python": {"unigram": 6.0, "bigram": 4.0}, "text": {"unigram": 9.0, "bigram": 5.0}}
    held_out = {"python": 4.5, "text": 6.5}
    losses = build_summary(run, recipe(), finished_metrics(run), manifest(python=30, text=2), baselines, held_out, step=STEPS)["losses"]
    assert (losses["held_out"], losses["unigram"], losses["bigram"]) == (5.5, 7.5, 4.5)
    assert (losses["below_unigram"], losses["above_bigram"]) == (2.0, 1.0)


def test_summary_holds_the_whole_run(run: RunFolder) -> None:
    metrics, corpus = finished_metrics(run), manifest(python=499)
    summary = build_summary(run, recipe(), metrics, corpus, BASELINES, {"python": 4.5}, step=STEPS, checkpoint="step-00000003")
    assert summary["losses"]["held_out"] == 4.5
    assert summary["losses"]["below_unigram"] == 1.5
    assert summary["state"] == "stopped"
    assert summary["tokens_seen"] == STEPS * 4 * 4
    assert summary["parts"]["other"] == pytest.approx(6 / 3)
    assert summary["speed"]["tokens_per_second"] == pytest.approx(3 * TOKENS / 6)
    assert summary["depth"] == {}
    assert summary["load"]["dead_share"] == pytest.approx(3 / 7)
    assert summary["checkpoint"] == "step-00000003"
    assert summary["corpus"] == corpus.digest and summary["losses"]["windows"] == {"python": {"scored": 499, "held_out": 499}}
    assert read_summary(run) == json.loads(run.summary_path.read_text()) == json.loads(json.dumps(summary))


def test_a_summary_at_the_last_step_is_finished(run: RunFolder) -> None:
    assert build_summary(run, recipe(), finished_metrics(run), manifest(python=1), BASELINES, {}, step=12)["state"] == "finished"


def test_windows_that_were_scored() -> None:
    assert windows_words(scored_windows({"python": 499}, 128)) == "first 128 of 499 windows"
    assert (
        windows_words(scored_windows({"python": 1499}, None))
        == windows_words(scored_windows({"python": 1499}, 2000))
        == "all 1,499 windows"
    )
    several = scored_windows({"python": 499, "text": 5}, 128)
    assert windows_words(several) == "mean over python: first 128 of 499 windows, text: all 5 windows"


def test_whole_run_weighs_intervals_by_their_steps() -> None:
    parts = dict.fromkeys(("data", "attention", "dispatch", "experts", "backward", "optimizer", "logging", "other", "checkpoint"), 0.0)
    line = {"tokens": 10, "model_flop_use": 0.5, "parts": {**parts, "forward": 1.0, "validation": 9.0}, "step_seconds": 1.0}
    slow = {"tokens": 10, "model_flop_use": None, "parts": {**parts, "forward": 4.0, "validation": 0.0}, "step_seconds": 4.0}
    over = whole_run([{**line, "interval_steps": 3}, {"step": 3, "held_out": {}}, {**slow, "interval_steps": 1}])
    assert over["parts"]["forward"] == 7 / 4
    assert over["step_seconds"] == 7 / 4
    assert over["tokens_per_second"] == 20 / 7
    assert over["model_flop_use"] == 0.5
    assert over["depth"] == {}
    assert whole_run([]) == {}


def test_depth_of_the_whole_run_weighs_intervals_by_their_steps() -> None:
    line = {"tokens": 10, "model_flop_use": None, "parts": dict.fromkeys(PARTS, 0.0), "step_seconds": 1.0}
    first = {**line, "interval_steps": 3, "repeats": 2.0, "halting": {"mean_passes": 1.0, "saved_share": 0.5, "loss": 9.0}}
    last = {**line, "interval_steps": 1, "repeats": 4.0, "halting": {"mean_passes": 3.0, "saved_share": 0.25, "loss": 9.0}}
    assert whole_run([first, last])["depth"] == {"repeats": 10 / 4, "mean_passes": 6 / 4, "saved_share": 1.75 / 4}


def test_a_run_without_a_summary(run: RunFolder) -> None:
    with pytest.raises(RunError, match="run 'small' has no summary yet"):
        read_summary(run)
    run.summary_path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        read_summary(run)
