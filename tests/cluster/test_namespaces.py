"""Three hosts in three network namespaces: a job over Ray Jobs trains across them, loses one, goes on, and grows again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import DASHBOARD_PORT, Hosts
from launching import wait_for

from cluster.events import FAILURES, RunEvent, read_events
from distributed.run_folder import RunFolder
from distributed.summary import run_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))
from small_run import recipe_values, write_corpus

LONG = os.environ.get("MOOTRON_LONG_TESTS") == "1"
"""A run on three hosts beside other tests takes most of two cores for minutes."""


@pytest.fixture
def hosts(home: Path) -> Iterator[Hosts]:
    try:
        made = Hosts(3, home)
    except OSError as fault:
        pytest.skip(f"network namespaces cannot be made here: {fault}")
    try:
        yield made
    finally:
        made.close()


def write_recipe(home: Path) -> Path:
    """Three workers that share the experts, a checkpoint every five steps, more steps than the test waits for."""
    write_corpus(home)
    values = recipe_values(home, steps=100_000, uneven_batch=True)
    values |= {"name": "across", "expert_parallel": {"size": 3}, "checkpoint": {"every": 5, "keep_last": 3}}
    values["data"]["loader_workers"] = 0
    values["validation"]["every"] = 100_000
    values["cluster"] = {"workers": 3, "cpus_per_worker": 1}
    path = home / "across.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def lines_of(run: RunFolder) -> list[dict[str, Any]]:
    return [line for line in run_lines(run) if "loss" in line]  # the last line may be half written


def trained(run: RunFolder, world: int, steps: int) -> bool:
    """Whether the newest lines are `steps` steps of a group of `world`."""
    state = run.read_state()
    assert state["state"] != "failed" or not state.get("reason"), state.get("reason")
    newest = lines_of(run)[-steps:]
    return len(newest) == steps and all(line["world"] == world for line in newest)


def failures_of(run: RunFolder) -> list[RunEvent]:
    return [event for event in read_events(run) if event.kind in FAILURES]


@pytest.mark.ray
@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.skipif(not LONG, reason="two to three minutes; runs with MOOTRON_LONG_TESTS=1")
def test_training_across_hosts_survives_the_loss_of_one(hosts: Hosts, home: Path) -> None:
    path = write_recipe(home)
    for host in range(3):
        hosts.start_ray(host)
        wait_for(lambda host=host: hosts.has_ray(host))  # type: ignore[misc]
    wait_for(lambda: hosts.answers(0, DASHBOARD_PORT))
    run = RunFolder.named("across")
    submitted = hosts.call(0, "submit", str(path), "--address", hosts.dashboard)
    assert submitted.returncode == 0, submitted.stderr
    wait_for(lambda: trained(run, 3, 12))
    interfaces = (run.logs / "driver.log").read_text()
    assert all(f"({hosts.address(host)}, link{host}, " in interfaces for host in range(3)), "each host by its own interface"

    hosts.cut(2)
    wait_for(lambda: trained(run, 2, 6))
    (lost,) = failures_of(run)
    assert (lost.kind, lost.rank, lost.address) == ("node lost", 2, hosts.address(2))
    assert read_events(run)[-1].expert_parallel == 2 and no_step_is_missing(run)
    grow_again(hosts, run)
    stopped = hosts.call(0, "stop", "across")
    assert stopped.returncode == 0 and "stopped at step" in stopped.stdout, stopped.stdout + stopped.stderr


def grow_again(hosts: Hosts, run: RunFolder) -> None:
    """The host comes back: the run grows at a committed checkpoint and repeats no step."""
    hosts.join(2)
    wait_for(lambda: trained(run, 3, 6))
    assert len(failures_of(run)) == 1, "growth is no failure"
    worlds = [line["world"] for line in lines_of(run)]
    back = max(position for position, world in enumerate(worlds) if world == 2) + 1
    lines = lines_of(run)
    assert lines[back]["step"] == lines[back - 1]["step"] + 1 and lines[back - 1]["step"] % 5 == 0
    assert no_step_is_missing(run)


def no_step_is_missing(run: RunFolder) -> bool:
    steps = [line["step"] for line in lines_of(run)]
    return steps == list(range(1, steps[-1] + 1))
