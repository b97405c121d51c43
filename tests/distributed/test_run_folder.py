"""The run folder: what one process writes another reads whole."""

import os
from pathlib import Path

import pytest

from data_pipeline.files import write_text
from distributed.errors import RunError
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder, data_folder

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("MOOTRON_HOME", str(tmp_path))
    folder = RunFolder.named("first")
    folder.create(load_recipe(QUICKSTART, ["name=first"]))
    return folder


def test_the_recipe_comes_back_as_it_was(run: RunFolder) -> None:
    assert run.recipe() == load_recipe(QUICKSTART, ["name=first"])
    assert RunFolder.existing("first").path == run.path


def test_an_unknown_run_lists_the_known(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"no run 'secnd'.*first"):
        RunFolder.existing("secnd")


def test_a_run_of_a_comparison_has_two_names(run: RunFolder) -> None:
    part = RunFolder.named("set/one")
    part.create(run.recipe())
    assert RunFolder.existing("set/one") == part and part.path == run.path.parent / "set" / "one"
    assert (part.name, part.full_name, part.comparison) == ("one", "set/one", RunFolder.named("set"))
    assert (run.full_name, run.comparison) == ("first", None)
    with pytest.raises(RunError, match=r"no run 'set/two'.*runs: first, set/one"):
        RunFolder.existing("set/two")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b/c", "a/", "/a", "a/..", "../a", "a//b"])
def test_a_name_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(RunError, match="plain name"):
        RunFolder.named(name)


def test_state_is_replaced_whole(run: RunFolder) -> None:
    assert run.read_state()["state"] == "starting"
    run.write_state("running", step=3)
    run.write_state("stopped", step=4)
    assert (run.read_state()["state"], run.read_state()["step"]) == ("stopped", 4)
    assert not list(run.path.glob(".state*"))
    with pytest.raises(ValueError, match="not one of"):
        run.write_state("dancing")


def test_another_state_keeps_the_figures_but_not_why_the_last_one_ended(run: RunFolder) -> None:
    run.write_state("failed", step=3, loss=2.5, reason="no room", error="gone", rank=1)
    run.change_state("starting", world=2)
    assert {key: value for key, value in run.read_state().items() if key != "time"} == {
        "state": "starting",
        "step": 3,
        "loss": 2.5,
        "world": 2,
    }


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(AttributeError):
        write_text(path, 7)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("MOOTRON_HOME", str(tmp_path))
    with pytest.raises(RunError, match="MOOTRON_HOME"):
        RunFolder.named("first").create(load_recipe(QUICKSTART))


def test_relative_data_folders_lie_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOTRON_HOME", str(tmp_path))
    assert data_folder(load_recipe(QUICKSTART)) == tmp_path / "corpora" / "installed_python"
    assert data_folder(load_recipe(QUICKSTART, ["data.folder=/elsewhere"])) == Path("/elsewhere")
