"""A dry run changes what makes a run long and nothing of its model, windows or optimizer, and leaves little behind."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_comparison import write_recipe

from cluster.cli import main
from cluster.dry_run import DryRun, shortened, small_data
from cluster.dry_run_tables import expected, measured
from cluster.errors import ClusterError
from cluster.exit_codes import DONE, FAILED
from cluster.launcher import Start
from cluster.recipes import CONFIGS
from cluster.run_lock import RunLock
from distributed.checkpoint.manifest import MANIFEST, Manifest, Meta, Piece, manifest_text
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder
from model.accounting import parameters

RECIPES = sorted(path.stem for path in (CONFIGS / "paper").glob("*.yaml"))
SAMPLED = {"depth": {"group": 2, "repeats": 2, "sample": {"kind": "uniform", "max": 5}}}


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_is_the_recipe_but_for_its_length(name: str) -> None:
    path = CONFIGS / "paper" / f"{name}.yaml"
    recipe = load_recipe(path)
    small = load_recipe(path, shortened(recipe, 3, workers=2))
    assert small.model == recipe.model and small.name == f"dry-run-{name}"
    assert (small.data.seq_len, small.data.order, small.data.tokenizer.vocab_size) == (1024, "streams", 8000)
    assert (small.data.sources[0].kind, small.data.sources[0].held_out) == ("installed_python", None)
    assert (small.train.steps, small.train.global_batch, small.train.lr) == (3, 2 * recipe.train.micro_batch, recipe.train.lr)
    assert expected(recipe, small, 2).row_count == 4


def shorten(path: Path, *overrides: str) -> Recipe:
    """The recipe of a dry run on two workers."""
    return load_recipe(path, [*overrides, *shortened(load_recipe(path, list(overrides)), 3, workers=2)])


def test_a_second_forward_is_timed_and_a_drawn_depth_is_the_greatest(home: Path) -> None:
    path = write_recipe(home, "small", SAMPLED)
    assert shorten(path).train.global_batch == 2 * 2
    assert shorten(path, "model.feed_forward.balance={kind: switch}").train.global_batch == 2 * 2 * 2
    assert shorten(path, "model.feed_forward.balance={kind: bias}").train.global_batch == 2 * 2, "biases need no second forward"
    depth = shorten(path).model.depth
    assert (depth.repeats, depth.sample) == (5, None)
    replaying = ["router.replay=use", "router.choices=other"]
    assert shorten(path, *replaying).router.replay == "off"


def test_data_of_other_content_lie_in_other_folders(home: Path) -> None:
    data = load_recipe(write_recipe(home, "small")).data
    folder = small_data(data).folder
    assert folder == small_data(data.model_copy(update={"order_seed": 7, "prefetch": 9})).folder, "how it is read changes nothing"
    other = data.tokenizer.model_copy(update={"document_end": "none"})
    changed: list[dict[str, Any]] = [{"seq_len": 32}, {"seed": 1}, {"deduplicate": True}, {"tokenizer": other}]
    folders = {small_data(data.model_copy(update=change)).folder for change in changed}
    assert len(folders) == 4 and folder not in folders


def train_by_hand(run: RunFolder, recipe: Recipe, missing: int = 0) -> None:
    """A run as its trainer would leave it, the first step skipped, `missing` parameters not in its checkpoint."""
    figures = {"interval_steps": 1, "host_bytes_max": 3e9, "device_bytes_max": 0, "tokens_per_second": 512.0, "step_seconds": 0.25}
    for step, loss in ((1, None), (2, 5.25)):
        run.append_metrics({"step": step, "loss": loss, **figures})
    count = parameters(recipe.model).stored - missing
    piece = Piece(name="all", file="none", global_shape=(count,), offset=(0,), shape=(count,), start=0, stop=count, states=[])
    manifest = Manifest(
        step=2, meta=Meta(applied_steps=1, tokens=0), versions={}, layout={"world": 1}, pieces=[piece], buffers={}, files={}
    )
    folder = run.checkpoints / "step-00000002"
    folder.mkdir()
    (folder / MANIFEST).write_text(manifest_text(manifest))
    run.write_state("finished", step=2)


Launched = list[tuple[str, list[str]]]


@pytest.fixture
def launched(home: Path, monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Nothing is prepared or trained: the names under which runs began, and what was in their folders."""
    seen: Launched = []

    def launch(start: Start, lock: RunLock, console: Console) -> int:
        seen.append((start.run.name, sorted(path.name for path in start.run.checkpoints.iterdir())))
        train_by_hand(start.run, start.recipe)
        (start.run.logs / "rank-00000.log").write_text("what happened")
        return DONE if start.recipe.train.steps > 1 else FAILED

    monkeypatch.setattr("cluster.new_run.launch", launch)
    monkeypatch.setattr("cluster.new_run.ensure_corpus", lambda recipe, console: None)
    return seen


def told(words: list[str], steps: int = 2, keep: bool = False) -> tuple[int, str]:
    """The exit code and what was printed."""
    output = io.StringIO()
    return DryRun(words, steps, keep).start(Console(file=output, width=200)), output.getvalue()


def test_figures_are_of_the_run_that_ran_and_nothing_stays(home: Path, launched: Launched, make_run: Callable[..., RunFolder]) -> None:
    words = [str(write_recipe(home, "small", SAMPLED))]
    code, text = told(words, keep=True)
    assert code == DONE and "skipped, 5.250" in text and "3.00 GB" in text and "512 tokens/s" in text
    assert "5 in every step: the most that the recipe draws" in text
    kept = RunFolder.named("dry-run-small")
    before = kept.metrics_path.read_bytes()
    assert told(words)[0] == DONE
    assert [name for name, _ in launched] == ["dry-run-small", "dry-run-small-2"]
    assert kept.metrics_path.read_bytes() == before and not RunFolder.named("dry-run-small-2").path.exists()


def test_what_a_killed_trial_left_is_cleared_and_a_failed_one_leaves_its_logs(
    home: Path, launched: Launched, make_run: Callable[..., RunFolder]
) -> None:
    words = [str(write_recipe(home, "small"))]
    make_run("dry-run-small", "running", checkpoints=(7,))
    code, text = told(words, steps=1)
    assert launched == [("dry-run-small", [])], "an old checkpoint would be refused"
    assert code == FAILED and "first steps took" not in text
    run = RunFolder.named("dry-run-small")
    assert f"logs of the failed steps: {run.logs}" in text and [entry.name for entry in run.path.iterdir()] == ["logs"]
    assert (run.logs / "rank-00000.log").read_text() == "what happened"
    assert told(words, steps=2)[0] == DONE and not run.path.exists(), "the next trial clears them"


def test_a_trial_that_is_refused_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(recipe: Recipe, console: Console) -> None:
        raise ClusterError("no")

    monkeypatch.setattr("cluster.new_run.ensure_corpus", refuse)
    with pytest.raises(ClusterError):
        told([str(write_recipe(home, "small"))])
    assert not RunFolder.named("dry-run-small").path.exists()


def test_the_data_set_that_stays_is_named(home: Path, launched: Launched) -> None:
    path = write_recipe(home, "small")
    data = home / small_data(load_recipe(path).data).folder
    data.mkdir(parents=True)
    (data / "tokens").write_bytes(bytes(2500))
    _, text = told([str(path)])
    assert f"data set {data} (2.50 kB) stays for other dry runs" in text and data.exists()


def test_a_checkpoint_of_another_size_is_our_fault(make_run: Callable[..., RunFolder], recipe: Recipe) -> None:
    run = make_run("a")
    train_by_hand(run, recipe, missing=1)
    with pytest.raises(ClusterError, match="this is a fault of ours"):
        measured(recipe, run)


def test_state_is_that_of_the_trial_s_layout(recipe: Recipe) -> None:
    alone = recipe.model_copy(update={"expert_parallel": recipe.expert_parallel.model_copy(update={"size": 1})})
    states = [list(expected(recipe, trial, 2).columns[1].cells)[-1] for trial in (recipe, alone)]
    assert states[0] != states[1]


def test_no_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dry-run", "--steps", "0"]) == 2
    assert "--steps is 0; it must be 1 or more" in capsys.readouterr().err
