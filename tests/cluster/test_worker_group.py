"""A real Ray and real rank processes: results and deaths."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import with_cluster
from launching import at_work, lives, start_launcher, wait_for

from cluster.child import Outcome
from cluster.errors import ClusterError
from cluster.group_plan import GroupPlan
from cluster.rank_process import rank_log
from cluster.run_lock import is_held
from cluster.run_status import status_of
from cluster.worker_group import WorkerGroup
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

PLAN = GroupPlan(workers=2, cpus_per_worker=1.0, timeout_seconds=60.0)


def finish(run: RunFolder, target: str, *arguments: str) -> list:
    group = WorkerGroup(PLAN, run)
    try:
        group.start(("--target", f"group_target:{target}", *arguments))
        return outcomes_of(group)
    finally:
        group.kill()


def outcomes_of(group: WorkerGroup) -> list[Outcome]:
    """Outcomes by rank once all have a result, or as soon as one has failed: then only of those that have ended."""
    while True:
        ended = [report.outcome for report in group.poll() if report.outcome is not None]
        if len(ended) == len(group.actors) or any(outcome.result is None for outcome in ended):
            return ended
        time.sleep(0.1)


@pytest.mark.usefixtures("ray")
def test_ranks_meet_and_give_their_results(make_run: Callable[..., RunFolder], recipe: Recipe) -> None:
    run = make_run("a")
    run.create(with_cluster(recipe, preflight=True))
    outcomes = finish(run, "all_reduce", "--resume", "--branch-from", "b@3")
    assert [outcome.result for outcome in outcomes] == ["finished", "finished"], outcomes
    for rank in range(2):
        facts = json.loads((run.path / f"facts-{rank}.json").read_text())
        assert facts["sum"] == 3.0 and facts["resume"] is True and facts["branch_from"] == "b@3"
        assert (facts["RANK"], facts["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (facts["WORLD_SIZE"], facts["LOCAL_WORLD_SIZE"], facts["OMP_NUM_THREADS"]) == ("2", "2", "1")
        assert facts["MASTER_ADDR"] == "127.0.0.1" and facts["NCCL_SOCKET_IFNAME"] == "=" + facts["GLOO_SOCKET_IFNAME"]
        assert f"rank {rank} says hello" in rank_log(run, rank).read_text()


@pytest.mark.usefixtures("ray")
def test_a_dead_rank_ends_the_group(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    outcomes = finish(run, "one_dies")
    assert [(outcome.rank, outcome.code, outcome.result) for outcome in outcomes] == [(1, -signal.SIGKILL, None)]
    assert "the last words of rank 1" in rank_log(run, 1).read_text()
    assert not lives(int((run.path / "pid-0").read_text())), "rank 0 would have waited on"


@pytest.mark.usefixtures("ray")
def test_a_users_mistake_comes_back_in_words(make_run: Callable[..., RunFolder]) -> None:
    failed = finish(make_run("a"), "user_error")[0]
    assert (failed.code, failed.error) == (2, "train.steps is wrong; mend it")


@pytest.mark.usefixtures("ray")
def test_a_group_that_does_not_fit(make_run: Callable[..., RunFolder]) -> None:
    group = WorkerGroup(GroupPlan(workers=3, cpus_per_worker=1.0, timeout_seconds=0.5), make_run("a"))
    try:
        with pytest.raises(ClusterError, match=r"could not place 3 x .*CPU.* of 2 CPU, 0 GPU; lower cluster.workers"):
            group.start(())
    finally:
        group.kill()


@pytest.mark.usefixtures("ray")
def test_a_folder_that_a_node_does_not_see(tmp_path: Path) -> None:
    group = WorkerGroup(PLAN, RunFolder(tmp_path / "elsewhere"))
    try:
        with pytest.raises(ClusterError, match=r"elsewhere is not visible on .*MOOTRON_HOME"):
            group.start(())
    finally:
        group.kill()


@pytest.mark.usefixtures("ray")
def test_a_killed_launcher_leaves_nothing(make_run: Callable[..., RunFolder]) -> None:
    import ray

    run = make_run("a")
    launcher = start_launcher(run, ray.get_runtime_context().gcs_address)
    wait_for(lambda: at_work(run))
    ranks = [int((run.path / f"pid-{rank}").read_text()) for rank in range(2)]
    assert all(lives(rank) for rank in ranks) and status_of(run).state == "running"
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not any(lives(rank) for rank in ranks))
    wait_for(lambda: not is_held(run))
    assert status_of(run).state in ("failed", "lost")
