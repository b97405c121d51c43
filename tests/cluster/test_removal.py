"""`remove`: what is told and asked before, what is refused, and that nothing else goes. `status RUN`: what lies there."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.checkpoints import _MANIFEST, local_checkpoints, stored_checkpoints
from cluster.cli import main
from cluster.run_lock import RunLock
from distributed.checkpoint.manifest import MANIFEST
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder, all_runs


def fill(run: RunFolder, sizes: dict[int, int], whole: bool = True) -> RunFolder:
    """Checkpoints of so many bytes, with an empty manifest if they are whole."""
    for step, n_bytes in sizes.items():
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(exist_ok=True)
        (folder / "rank-00000.safetensors").write_bytes(bytes(n_bytes))
        if whole:
            (folder / MANIFEST).touch()
    return run


def answer(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(words))


@pytest.mark.parametrize("name", ["a", "set/a"])
def test_the_name_typed_again_removes_the_run_alone(
    name: str, make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = fill(make_run(name, "finished", step=20), {10: 1500, 20: 2500}), make_run(f"{name}b", "finished")
    elsewhere = other.path / "kept"
    elsewhere.write_text("kept")
    (run.path / "link").symlink_to(elsewhere)
    answer(f"{name}\n", monkeypatch)
    assert main(["remove", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"run {name}, finished at step 20: {run.path}, ") and lines[0].endswith(" kB")
    assert lines[1] == "  checkpoints: 2 (steps 10, 20), 4.00 kB"
    assert ("would train it again" in lines[2]) == ("/" in name)
    assert lines[-1].endswith(f"run {name} is removed")
    assert not run.path.exists() and [left.path for left in all_runs()] == [other.path] and elsewhere.read_text() == "kept"


@pytest.mark.parametrize(("words", "message"), [("b\n", "nothing is removed: 'b' is not 'a'"), ("", "--yes removes without asking")])
def test_another_answer_removes_nothing(
    words: str, message: str, make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("a", "finished")
    before = sorted(run.path.rglob("*"))
    answer(words, monkeypatch)
    assert main(["remove", "a"]) == 2
    assert message in capsys.readouterr().err and sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize(("name", "end"), [("a", "./launch.sh stop a"), ("set/a", "Ctrl-C in comparison 'set'")])
def test_a_run_at_work_stays(name: str, end: str, make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(name, "running")
    with RunLock(run.comparison or run):
        assert main(["remove", name, "--yes"]) == 2
        assert f"run '{name}' is at work (state: running); end it first with {end}" in capsys.readouterr().err
        run.write_state("failed")
        assert main(["remove", name, "--yes"]) == 2, "its supervisor, or its comparison, is still there"
    assert run.recipe_path.exists()
    assert main(["remove", name, "--yes"]) == 0, "a run whose process is gone can go"


def test_what_lies_elsewhere_stays_and_is_named(
    make_run: Callable[..., RunFolder], recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, address = make_run("a", "finished"), tmp_path / "store"
    checkpoint = recipe.checkpoint.model_copy(update={"address": f"file://{address}"})
    run.create(recipe.model_copy(update={"name": "a", "checkpoint": checkpoint}))
    folder = address / "a" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(bytes(1234))
    assert [(found.step, found.n_bytes) for found in stored_checkpoints(run)] == [(7, 1234)] and not local_checkpoints(run)
    assert main(["remove", "a", "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"its checkpoints at file://{address}/a stay; remove them there" in out and "installed_python stays" in out
    assert not run.path.exists() and folder.exists()


def test_a_run_of_another_version_can_go(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "finished")
    run.recipe_path.write_text("name: a\nfield_of_old: 1\n")
    assert main(["remove", "a", "--yes"]) == 0 and not run.path.exists()


def test_status_of_a_run_lists_its_checkpoints(
    make_run: Callable[..., RunFolder], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _MANIFEST == MANIFEST
    run = make_run("a", "finished")
    checkpoint = recipe.checkpoint.model_copy(update={"keep_every": 100})
    run.create(recipe.model_copy(update={"name": "a", "checkpoint": checkpoint}))
    fill(fill(run, {100: 1500, 150: 1500}), {175: 10}, whole=False)
    assert main(["status", "a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("a: 3 checkpoints")
    rows = [line.split() for line in lines[at + 2 :]]
    assert rows[0] == ["step", "100", "1.50", "kB", "kept", "(checkpoint.keep_every=100)"]
    assert rows[1] == ["step", "150", "1.50", "kB", "newest"]
    assert rows[2][:6] == ["step", "175", "10", "bytes", "not", "whole:"]
    assert main(["status"]) == 0
    assert "checkpoint" not in capsys.readouterr().out


def test_status_follows_one_run_from_its_last_figures(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"loss": 2.5, "tokens_per_second": 1234.5, "step_seconds": 2.0, "held_out": {"python": 3.0}}
    make_run("a", "finished", step=5, steps=200, **figures)
    assert main(["status", "-f", "a"]) == 0
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line == "step 5/200  loss 2.5000  1,234 tokens/s  2.00 s/step  6:30 left" and last == "run a: finished at step 5"
    assert main(["status", "-f"]) == 2
    assert "-f follows one run, 0 are named" in capsys.readouterr().err
