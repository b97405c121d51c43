"""The supervisor under a real Ray with real rank processes that have accidents."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from conftest import with_cluster
from elastic_target import STEPS

from cluster import group_watch
from cluster.events import FAILURES, RunEvent, read_events, restarts
from cluster.group_plan import GroupPlan
from cluster.supervisor import Supervisor
from distributed.layout_config import TableParallelConfig
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

Supervise = Callable[..., tuple[int, RunFolder]]

pytestmark = pytest.mark.alone


@pytest.fixture
def supervise(ray: None, make_run: Callable[..., RunFolder], recipe: Recipe) -> Supervise:
    """supervise(accidents, workers=2, always=False, **cluster): run to the end; its exit code and folder."""

    def run_it(accidents: dict[str, str], workers: int = 2, always: bool = False, **cluster: object) -> tuple[int, RunFolder]:
        run = make_run("a")
        chosen = with_cluster(recipe, **cluster)
        run.create(chosen)
        (run.path / "accidents.json").write_text(json.dumps(accidents))
        if always:
            (run.path / "always").touch()
        supervisor = Supervisor(run, chosen, GroupPlan(workers, 1.0, timeout_seconds=30.0), ("--target", "elastic_target:count"), False)
        try:
            return supervisor.supervise(), run
        finally:
            supervisor.kill()

    return run_it


def test_what_bounds_the_layouts_is_named(make_run: Callable[..., RunFolder], recipe: Recipe) -> None:
    def bounds(tables: int) -> str:
        cut = recipe.model_copy(update={"table_parallel": TableParallelConfig(size=tables)})
        return Supervisor(make_run("a"), cut, GroupPlan(2, 1.0), (), False)._bounds()

    assert bounds(1) == "cluster.min_workers is 1, train.global_batch 16"
    assert bounds(2) == "cluster.min_workers is 1, train.global_batch 16, table_parallel.size 2, which must divide the workers"


def steps_of(run: RunFolder) -> list[int]:
    return [line["step"] for line in lines_of(run)]


def lines_of(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (run.path / "steps.jsonl").read_text().splitlines()]


def failures_of(run: RunFolder) -> list[RunEvent]:
    return [event for event in read_events(run) if event.kind in FAILURES]


def test_accidents_are_survived_and_told(supervise: Supervise) -> None:
    """A rank killed, a rank stopped for good, and an actor lost, in one run."""
    code, run = supervise({"1@4": "kill", "0@7": "stop", "0@10": "actor"}, hang_seconds=2.0)
    assert code == 0
    # Saved every three steps: what came after the newest checkpoint is done again, nothing is left out.
    assert steps_of(run) == [1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11, 12]
    killed, hung, lost = failures_of(run)
    assert (killed.kind, killed.rank, killed.step) == ("killed", 1, 4) and "SIGKILL" in (killed.reason or "")
    assert (hung.kind, hung.rank, hung.step) == ("hung", 0, 7) and "process is stopped" in (hung.reason or "")
    assert hung.time - float((run.path / "happened-0-7").read_text()) <= 2.0 + 2.0, "ended within the set time and two seconds"
    assert (lost.kind, lost.rank) == ("node lost", 0), "not the other, whose fork server went with it"
    recovered = [event for event in read_events(run) if event.kind == "recovered"]
    assert [(event.step or 0) > failed for event, failed in zip(recovered, (4, 7, 10), strict=True)] == [True] * 3
    assert all(abs(sum(event.parts.values()) - event.seconds) < 0.1 for event in recovered), "the parts add up"
    assert restarts(read_events(run)) == 3


def test_the_same_error_twice_ends_the_run(supervise: Supervise) -> None:
    code, run = supervise({"0@2": "error"}, always=True)
    assert code == 1 and len(failures_of(run)) == 2
    reason = run.read_state()["reason"]
    assert reason.startswith("the same failure came twice at step 2") and "no such tensor" in reason


def test_growth_at_a_checkpoint_loses_no_step(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_watch, "GROW_SECONDS", 0.2)
    code, run = supervise({}, workers=1, max_workers=2)
    assert code == 0 and not failures_of(run)
    assert steps_of(run) == list(range(1, STEPS + 1)), "every step once"
    layouts = [(line["world"], line["ep"]) for line in lines_of(run)]
    assert layouts[0] == (1, 1) and layouts[-1] == (2, 2)
    assert not run.regroup_path.exists()
