"""What the guard calls trouble, what a run leaves out after it, and the roll-back of a whole small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pool import Pool, WorkerError
from small_run import recipe_values, write_corpus

from distributed.guard import LEAST_LOSSES, Guard, Trouble
from distributed.run_config import GuardConfig
from distributed.run_folder import RunFolder
from distributed.skips import Skips


def feed(guard: Guard, losses: list[float | None]) -> Trouble | None:
    """The first trouble over steps whose losses are given; None is a gradient that is not finite."""
    for step, loss in enumerate(losses):
        if trouble := guard.watch(step, float("nan") if loss is None else loss, skipped=loss is None):
            return trouble
    return None


def test_steps_in_a_row_that_are_not_finite() -> None:
    guard = GuardConfig(not_finite_in_a_row=3)
    assert feed(Guard(guard), [1.0, None, None, 1.0, None, None]) is None
    trouble = feed(Guard(guard), [1.0, None, None, None])
    assert trouble is not None and (trouble.first, trouble.last) == (1, 3)
    assert "not finite in 3 steps in a row" in trouble.reason


def test_a_loss_that_stays_high() -> None:
    guard = GuardConfig(spike_nats=1.0, spike_steps=2)
    usual = [3.0] * LEAST_LOSSES
    assert feed(Guard(guard), [*usual, 4.5, 3.0, 4.5]) is None, "one high step is no trouble"
    assert feed(Guard(guard), [3.0, 9.0, 9.0]) is None, "too early to tell"
    trouble = feed(Guard(guard), [*usual, 3.5, 4.5, 4.6])
    assert trouble is not None and (trouble.first, trouble.last) == (LEAST_LOSSES + 1, LEAST_LOSSES + 2)
    trouble = feed(Guard(guard), [*usual, 4.5, None, 4.6])
    assert trouble is not None and (trouble.first, trouble.last) == (LEAST_LOSSES, LEAST_LOSSES + 2), (
        "nor does a step without a loss end it"
    )
    assert feed(Guard(GuardConfig()), [*usual, 99.0, 99.0, 99.0]) is None, "not looked at unless asked"


def test_skipped_steps_are_left_out_of_the_order_once_and_for_all(tmp_path: Path) -> None:
    skips = Skips(RunFolder(tmp_path))
    assert [skips.order_step(step) for step in range(4)] == [0, 1, 2, 3]
    skips.add(2, 3, "spike", rolled_back_to=1)
    assert [skips.order_step(step) for step in range(5)] == [0, 1, 4, 5, 6]
    skips.add(3, 3, "again", rolled_back_to=2)  # what the run now calls step 3 is step 5 of the order
    again = Skips(RunFolder(tmp_path))
    assert [again.order_step(step) for step in range(5)] == [0, 1, 4, 6, 7] and again.roll_backs == 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder)
    return folder


def values(home: Path, name: str, **guard: Any) -> dict[str, Any]:
    recipe = recipe_values(home, steps=8) | {"name": name, "guard": {"not_finite_in_a_row": 2, **guard}}
    recipe["data"]["loader_workers"] = 0
    recipe["checkpoint"] = {"every": 2}
    return recipe


def test_a_run_rolls_back_and_leaves_the_bad_samples_out(home: Path, pool: Pool) -> None:
    recipe = values(home, "bad", action="roll_back")
    seen = pool.run(2, "guard_work:train_with_bad_samples", home=str(home), values=recipe, bad_steps=[3, 4], timeout=200)
    assert seen[0]["outcome"] == "finished"
    # Run steps 0 to 4, back to the checkpoint after two (a skipped step saves nothing new), then on without order steps 3 and 4.
    assert seen[0]["order_steps"] == [0, 1, 2, 3, 4, 2, 5, 6, 7, 8, 9]
    run = RunFolder(home / "runs" / "bad")
    (entry,) = json.loads((run.path / "skips.json").read_text())
    assert entry["steps"] == [3, 4] and entry["rolled_back_to"] == 2
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 9)), "each step stands once in the figures"


def test_trouble_before_the_first_good_checkpoint_ends_the_run_and_touches_nothing(home: Path, pool: Pool) -> None:
    recipe = values(home, "early", action="roll_back", not_finite_in_a_row=3)
    with pytest.raises(WorkerError, match="there is no checkpoint from before to go back to"):
        pool.run(2, "guard_work:train_with_bad_samples", home=str(home), values=recipe, bad_steps=[0, 1, 2], timeout=200)
    assert [path.name for path in (home / "runs/early/checkpoints").glob("step-*")] == ["step-00000002"]


def test_a_run_that_may_not_roll_back_stops_and_says_how_to_go_on(home: Path, pool: Pool) -> None:
    with pytest.raises(WorkerError, match=r"steps 4 to 5: gradients were not finite in 2 steps in a row; (.|\n)*guard.action=roll_back"):
        recipe = values(home, "stops")
        pool.run(2, "guard_work:train_with_bad_samples", home=str(home), values=recipe, bad_steps=[3, 4], timeout=200)
