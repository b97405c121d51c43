"""A real comparison of two tiny recipes as plain child processes: stopped, gone on with, and equal to runs nobody stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

import pytest
from test_comparison import two_recipes

from cluster.cli import main
from cluster.comparison import piece
from cluster.comparison.entries import Entry, comparison_folder, entry, read_comparison
from cluster.comparison.results import gather
from cluster.comparison.runners import ChildRunner
from cluster.comparison.schedule import StopRequest, train_all
from data_pipeline.baselines import ngram_losses
from data_pipeline.errors import DataError
from data_pipeline.manifest import load_manifest
from distributed.run_folder import RunFolder, data_folder
from distributed.summary import read_summary
from distributed.topology import init_topology
from distributed.trainer import Trainer, train

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))
from small_run import write_corpus


class StopAtOnce(StopRequest):
    """Asked as soon as a run has been started: it stops after its first step."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__()
        self.entries = entries

    @property
    def asked(self) -> bool:
        return any(entry.run.recipe_path.exists() for entry in self.entries)


def test_a_comparison_is_stopped_and_goes_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(home)
    words = [*two_recipes(home, train={"lr": 0.02}), "train.steps=6", "train.micro_batch=8", "validation.every=3", "data.loader_workers=0"]
    comparison = read_comparison(words, 1)
    runner = ChildRunner()
    try:
        train_all(comparison.entries, runner, StopAtOnce(comparison.entries), lambda at_work: None)
    finally:
        runner.kill()
    first, second = comparison.entries
    state = first.run.read_state()
    assert (state["state"], state["step"]) == ("stopped", 1) and not second.run.path.exists()

    assert main(["compare", *words, "--seeds", "1", "--local"]) == 0
    told = capsys.readouterr().out
    assert "2 of 2 runs of compare-set finished" in told and "MACs a token" in told
    text, summary = (comparison.folder / "report.md").read_text(), read_summary(first.run)
    assert (comparison.folder / "report.html").exists() and "Not finished" not in text
    folder = data_folder(first.recipe)
    unigram = {n_windows: mean(losses["unigram"] for losses in ngram_losses(folder, n_windows).values()) for n_windows in (8, None)}
    assert summary["losses"]["unigram"] == unigram[8] != unigram[None], "the baselines are scored over validation's windows"
    assert "first 8 of " in text and load_manifest(folder).digest[:12] in text
    alone = train_alone(first)
    assert summary["losses"]["held_out"] == pytest.approx(read_summary(alone)["losses"]["held_out"], abs=1e-5)
    assert (first.run.checkpoints / "step-00000001").exists(), "it went on from where it was stopped"

    finished = first.run.metrics_path.read_bytes()
    assert main(["compare", *words, "--seeds", "1", "--local"]) == 0
    assert first.run.metrics_path.read_bytes() == finished, "a finished run is kept"
    capsys.readouterr()
    assert main(["eval", "compare-set/moeut-s1", "--max-windows", "8"]) == 0 and main(["logs", "compare-set/moeut-s1"]) == 0
    assert "run moeut-s1 at step 6" in capsys.readouterr().out


def train_alone(one: Entry) -> RunFolder:
    """The same run in this process from beginning to end."""
    again = entry(comparison_folder("alone"), one.recipe.model_copy(update={"name": "alone"}), one.seed)
    again.run.create(again.recipe)
    assert train(again.recipe, again.run) == "finished"
    return again.run


def test_status_says_why_a_run_failed(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = read_comparison(two_recipes(home), 1)
    run = comparison.entries[0].run
    run.create(comparison.entries[0].recipe)
    monkeypatch.setattr("cluster.comparison.piece.die_with_parent", lambda parent: None)
    with pytest.raises(DataError):
        piece.main([str(run.path), "--parent", "1", "--at-once", "1"])
    assert main(["status"]) == 0
    assert "\ncompare-set/moeut-s1: DataError: " in capsys.readouterr().out
    assert "holds no prepared data set" in (gather(comparison)[0].runs[0].trouble or "")


def test_recipes_take_the_same_samples_and_seeds_take_others(home: Path) -> None:
    write_corpus(home)
    comparison = read_comparison([*two_recipes(home), "data.loader_workers=0"], 2)
    steps = {}
    for one in comparison.entries:
        one.run.create(one.recipe)
        order = Trainer(one.recipe, one.run, init_topology(use_deepspeed=False)).order
        steps[one.label, one.seed] = [order.ids(step) for step in range(3)]
    assert steps["moeut", 1] == steps["dense", 1] != steps["moeut", 2] == steps["dense", 2]
