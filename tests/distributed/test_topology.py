"""Ranks, groups and devices: with and without DeepSpeed, again and again in the same processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed.errors import RunError
from distributed.topology import close_topology, data_group_ranks, expert_group_ranks, init_topology


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a launcher's variables."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_layout_of_groups() -> None:
    assert expert_group_ranks(6, 2) == [[0, 1], [2, 3], [4, 5]]
    assert data_group_ranks(6, 2) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(("world", "expert_parallel"), [(1, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4)])
def test_groups_hold_the_ranks_of_the_layout(pool: Any, world: int, expert_parallel: int) -> None:
    for rank, place in enumerate(pool.run(world, "topology_work:groups", expert_parallel=expert_parallel)):
        assert place["rank"] == rank
        assert place["expert_rank"] == rank % expert_parallel
        assert place["expert_group"] in expert_group_ranks(world, expert_parallel)
        assert place["data_group"] in data_group_ranks(world, expert_parallel)
        assert rank in place["expert_group"] and rank in place["data_group"]
        assert place["world_group"] == list(range(world))


@pytest.mark.parametrize(("expert_parallel", "table_parallel"), [(1, 2), (2, 4), (2, 2)])
def test_tables_have_groups_of_their_own_size(pool: Any, expert_parallel: int, table_parallel: int) -> None:
    layout = {"expert_parallel": expert_parallel, "table_parallel": table_parallel}
    for rank, place in enumerate(pool.run(4, "topology_work:groups", **layout)):
        assert rank in place["table_group"] and place["table_group"] in expert_group_ranks(4, table_parallel)
        assert rank in place["table_data_group"] and place["table_data_group"] in data_group_ranks(4, table_parallel)
        assert place["expert_group"] in expert_group_ranks(4, expert_parallel)


@pytest.mark.parametrize(
    ("world", "expert_parallel", "table_parallel"), [(4, 2, 1), (2, 1, 1), (4, 4, 1), (1, 1, 1), (4, 1, 2), (4, 2, 4), (2, 2, 2)]
)
def test_deepspeed_takes_the_same_groups(pool: Any, world: int, expert_parallel: int, table_parallel: int) -> None:
    """In processes that served another world before: nothing of it may be left."""
    layout = {"expert_parallel": expert_parallel, "table_parallel": table_parallel}
    for rank, found in enumerate(pool.run(world, "topology_work:deepspeed_groups", **layout)):
        assert found["same_tables"] and found["same_expert"] and found["same_data"] and found["same_world"]
        assert found["names"] == sorted({f"ep_size_{expert_parallel}"} | ({f"ep_size_{table_parallel}"} - {"ep_size_1"}))
        assert rank in found["expert"] and found["expert"] in expert_group_ranks(world, expert_parallel)
        assert rank in found["data"] and found["data"] in data_group_ranks(world, expert_parallel)


def test_one_process_without_a_launcher_needs_no_group(launcher: pytest.MonkeyPatch) -> None:
    topology = init_topology(1, device="cpu", use_deepspeed=False)
    assert (topology.rank, topology.world, topology.expert_rank) == (0, 1, 0)
    assert topology.expert_group is topology.data_group is topology.world_group is None
    assert not torch.distributed.is_initialized()
    close_topology(topology)


@pytest.mark.parametrize(
    ("variables", "expert_parallel", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, 1, "RANK is 2 and WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, 3, "size is 3, which does not divide 4"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, 1, "RANK is 'one'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, 1, "MASTER_ADDR and MASTER_PORT must be set"),
        ({"WORLD_SIZE": "2"}, 1, "RANK and MASTER_ADDR and MASTER_PORT must be set"),
    ],
)
def test_wrong_environment_is_named(launcher: pytest.MonkeyPatch, variables: dict[str, str], expert_parallel: int, message: str) -> None:
    for name, value in variables.items():
        launcher.setenv(name, value)
    with pytest.raises(RunError, match=message):
        init_topology(expert_parallel, device="cpu", use_deepspeed=False)


def test_unknown_device_is_named(launcher: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="device is 'tpu'"):
        init_topology(1, device="tpu", use_deepspeed=False)
