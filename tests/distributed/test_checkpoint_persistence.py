"""A run's own use of checkpoints: where they lie, who may write there, and what a resume finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pool import Pool
from small_model import SmallModel
from small_run import recipe_values
from test_checkpoint import ALONE, hand_made

from distributed.errors import RunError
from distributed.fragment import Fragment
from distributed.persistence import Persistence, storage_of
from distributed.recipe import Recipe
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder


class StillEngine:
    """Constant state; what is loaded into it can be read."""

    def __init__(self, fill: float) -> None:
        self.applied_steps = 0
        self._fragments = hand_made(SmallModel(ALONE), fill)

    def fragments(self) -> list[Fragment]:
        return self._fragments

    def finish_load(self, applied_steps: int) -> None:
        self.applied_steps = applied_steps

    def values(self) -> set[float]:
        return {float(value) for fragment in self._fragments for view in fragment.tensors.values() for value in view.unique()}


def recipe(home: Path, **checkpoint: Any) -> Recipe:
    return check_recipe(recipe_values(home) | {"checkpoint": {"keep_last": 1, **checkpoint}}, "test")


def persistence(home: Path, fill: float, **checkpoint: Any) -> tuple[Persistence, Any]:
    engine: Any = StillEngine(fill)
    run = RunFolder(home / "runs" / "small")
    return Persistence(recipe(home, **checkpoint), run, ALONE, engine, SmallModel(ALONE).boxes(), {}, "digest"), engine


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("address", [None, "file://{home}/elsewhere", "memory://{home}"])
def test_a_run_goes_on_where_it_was_saved(tmp_path: Path, address: str | None, asynchronous: bool) -> None:
    settings = {"asynchronous": asynchronous, "address": address and address.format(home=tmp_path)}
    first, _ = persistence(tmp_path, 1.0, **settings)
    assert first.restore(resume=False, branch_from=None) == 0 and first.newest is None
    for step in (10, 20):
        first.save(step, {"words": 2.0})
    first.close()
    assert first.newest == "step-00000020"
    assert [(event["kind"], event["step"]) for event in first.events if event["kind"] != "waited"] == [("committed", 10), ("committed", 20)]
    again, engine = persistence(tmp_path, 5.0, **settings)
    assert again.restore(resume=True, branch_from=None) == 20 and again.newest == "step-00000020"
    assert engine.values() == {1.0}
    assert [name for name in again.storage.names() if name.startswith("step")] == ["step-00000020"], "keep_last is 1"


def test_a_new_run_does_not_write_among_older_checkpoints(tmp_path: Path) -> None:
    """Its steps would be taken for done."""
    older, _ = persistence(tmp_path, 1.0)
    older.restore(resume=False, branch_from=None)
    older.save(10, {})
    older.close()
    with pytest.raises(RunError, match="holds checkpoints of an older run 'small'; choose another name with --name"):
        persistence(tmp_path, 2.0)[0].restore(resume=False, branch_from=None)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_unasked(tmp_path: Path) -> None:
    run, _ = persistence(tmp_path, 1.0)
    run.restore(resume=False, branch_from=None)
    run.save(10, {})
    run.close()
    (file,) = (tmp_path / "runs/small/checkpoints/step-00000010").glob("rank-*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"all checkpoints in .* are damaged and set aside: nothing is left to go on from"):
        persistence(tmp_path, 2.0)[0].restore(resume=True, branch_from=None)


def test_a_group_that_was_replaced_ends_at_its_next_save(tmp_path: Path) -> None:
    replaced, _ = persistence(tmp_path, 1.0)
    replaced.restore(resume=False, branch_from=None)
    persistence(tmp_path, 2.0)[0].restore(resume=True, branch_from=None)
    replaced.save(10, {})
    with pytest.raises(RunError, match="start 2 of this run has taken over from start 1"):
        replaced.save(20, {})


def test_a_place_that_ranks_do_not_share(pool: Pool, tmp_path: Path) -> None:
    """Each host's own disk, or here each process's own memory: rank 0 would wait for marks that it cannot see."""
    messages = pool.run(2, "checkpoint_saver_work:restore_in_own_memory", home=str(tmp_path))
    assert all("not all workers see what rank 0 wrote at memory://" in message for message in messages)


def test_an_address_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"checkpoint.address: must be an address such as file:///data/checkpoints .*\(got 'data/x'\)"):
        recipe(tmp_path, address="data/x")
    run = RunFolder(tmp_path / "runs" / "small")
    assert storage_of(recipe(tmp_path, address=f"file://{tmp_path}/a"), run).address == f"{tmp_path}/a/small"
    assert storage_of(recipe(tmp_path), run).address == str(run.checkpoints)
