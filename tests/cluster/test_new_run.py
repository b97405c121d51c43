"""Names, folders and branches of new runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cluster.new_run import NewRun, clear_unstarted, find_checkpoint
from cluster.run_lock import RunLock, lock_path
from distributed.errors import RunError
from distributed.run_folder import RunFolder


def test_a_finished_run_gives_the_next_a_number(make_run: Callable[..., RunFolder]) -> None:
    assert NewRun([]).named_recipe().name == "quickstart"
    make_run("quickstart", "finished", checkpoints=(200,))
    assert NewRun([]).named_recipe().name == "quickstart-2"
    make_run("quickstart-2", "finished", checkpoints=(200,))
    assert NewRun([]).named_recipe().name == "quickstart-3"
    assert NewRun([], name="quickstart").named_recipe().name == "quickstart"


@pytest.mark.parametrize(("state", "hint"), [("finished", "train.steps=N"), ("stopped", "resume a"), ("failed", "resume a")])
def test_a_run_with_checkpoints_is_not_touched(state: str, hint: str, make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", state, checkpoints=(7,), step=7)
    with RunLock(run), pytest.raises(RunError, match=rf"{hint}"):
        clear_unstarted(run, Console())
    assert (run.checkpoints / "step-00000007").is_dir() and run.recipe_path.is_file()


def test_what_never_reached_a_checkpoint_is_cleared(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("a", "failed")
    (run.logs / "rank-00000.log").write_text("old words")
    run.append_metrics({"step": 1})
    with RunLock(run):
        clear_unstarted(run, Console())
        assert list(run.path.iterdir()) == [lock_path(run)]
        assert f"removing the earlier try in {run.path}: it has no checkpoint" in capsys.readouterr().out
        clear_unstarted(run, Console())
        assert capsys.readouterr().out == ""


def test_the_folder_of_a_comparison_is_not_cleared(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("set/a", "finished")
    assert run.comparison is not None
    with pytest.raises(RunError, match="holds the runs of a comparison; choose another name with --name"):
        clear_unstarted(run.comparison, Console())
    assert run.recipe_path.is_file()


def test_checkpoint_of_a_branch(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "stopped", checkpoints=(5, 10))
    assert find_checkpoint("a") == (run, 10)
    assert find_checkpoint("a@5") == (run, 5)
    for wrong in ("a@7", "a@", "a@last", "a@-5"):
        with pytest.raises(RunError, match="it has 5, 10"):
            find_checkpoint(wrong)


def test_a_branch_takes_recipe_and_name_from_its_origin(make_run: Callable[..., RunFolder], home: Path) -> None:
    run = make_run("a", "stopped", checkpoints=(5, 10))
    run.recipe_path.write_text(run.recipe_path.read_text().replace("global_batch: 16", "global_batch: 32"))
    branch = NewRun(["train.lr=1e-4"], branch_from="a@5").named_recipe()
    assert (branch.name, branch.train.global_batch, branch.train.lr) == ("a-from-5", 32, 1e-4)
    make_run("set/a", "stopped", checkpoints=(7,))
    assert NewRun([], branch_from="set/a@7").named_recipe().name == "a-from-7"
    other = NewRun(["quickstart"], name="b", branch_from="a").named_recipe()
    assert (other.name, other.train) == ("b", NewRun([]).recipe().train)
