"""summary.json: comparison with the baselines, figures over the whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metrics_work import STEPS, TOKENS, HandClock, loads, lone, recipe

from distributed.clock import HostTimeline, StepClock
from distributed.errors import RunError
from distributed.figures import whole_run
from distributed.metrics import Metrics
from distributed.run_folder import RunFolder
from distributed.summary import build_summary, compare, read_summary

BASELINES = {"unigram": 6.0, "bigram": 4.0}


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
    metrics = Metrics(run, recipe(), lone(), [7, 7], 0, StepClock(torch.device("cpu"), HostTimeline(hand)))
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


def test_summary_holds_the_whole_run(run: RunFolder) -> None:
    summary = build_summary(run, recipe(), finished_metrics(run), BASELINES, {"python": 4.5}, step=STEPS, checkpoint="step-00000003")
    assert summary["losses"]["held_out"] == 4.5
    assert summary["losses"]["below_unigram"] == 1.5
    assert summary["state"] == "stopped"
    assert summary["tokens_seen"] == STEPS * 4 * 4
    assert summary["parts"]["other"] == pytest.approx(6 / 3)
    assert summary["speed"]["tokens_per_second"] == pytest.approx(3 * TOKENS / 6)
    assert summary["load"]["dead_share"] == pytest.approx(3 / 7)
    assert summary["checkpoint"] == "step-00000003"
    assert read_summary(run) == json.loads(run.summary_path.read_text()) == summary


def test_a_summary_at_the_last_step_is_finished(run: RunFolder) -> None:
    assert build_summary(run, recipe(), finished_metrics(run), BASELINES, {}, step=12)["state"] == "finished"


def test_whole_run_weighs_intervals_by_their_steps() -> None:
    parts = dict.fromkeys(("data", "attention", "dispatch", "experts", "backward", "optimizer", "logging", "other", "checkpoint"), 0.0)
    line = {"tokens": 10, "model_flop_use": 0.5, "parts": {**parts, "forward": 1.0, "validation": 9.0}, "step_seconds": 1.0}
    slow = {"tokens": 10, "model_flop_use": None, "parts": {**parts, "forward": 4.0, "validation": 0.0}, "step_seconds": 4.0}
    over = whole_run([{**line, "interval_steps": 3}, {"step": 3, "held_out": {}}, {**slow, "interval_steps": 1}])
    assert over["parts"]["forward"] == 7 / 4
    assert over["step_seconds"] == 7 / 4
    assert over["tokens_per_second"] == 20 / 7
    assert over["model_flop_use"] == 0.5
    assert whole_run([]) == {}


def test_a_run_without_a_summary(run: RunFolder) -> None:
    with pytest.raises(RunError, match="run 'small' has no summary yet"):
        read_summary(run)
    run.summary_path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        read_summary(run)
