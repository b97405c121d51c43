"""Rank order and environment of a group, over nodes of unequal size."""

from __future__ import annotations

from cluster.group_environment import group_environment, rank_order
from cluster.rank_process import NodeFacts


def place(node: str, address: str, devices: str | None = None) -> NodeFacts:
    found = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    return NodeFacts(node, address, f"host-{node}", f"eth-{node}", 8, found, sees_run=True)


def test_ranks_are_contiguous_per_node_in_order_of_address() -> None:
    places = [place("b", "10.0.0.10"), place("a", "10.0.0.9"), place("b", "10.0.0.10"), place("a", "10.0.0.9"), place("a", "10.0.0.9")]
    assert rank_order(places) == [1, 3, 4, 0, 2]


def test_environment_of_unequal_nodes() -> None:
    places = [place("a", "10.0.0.9"), place("a", "10.0.0.9"), place("b", "10.0.0.10")]
    environments = group_environment(places, ports=(2345, 2346), cpus_per_worker=3.5)
    assert [environment["RANK"] for environment in environments] == ["0", "1", "2"]
    assert [environment["LOCAL_RANK"] for environment in environments] == ["0", "1", "0"]
    assert [environment["LOCAL_WORLD_SIZE"] for environment in environments] == ["2", "2", "1"]
    assert [environment["GLOO_SOCKET_IFNAME"] for environment in environments] == ["eth-a", "eth-a", "eth-b"]
    assert {environment["WORLD_SIZE"] for environment in environments} == {"3"}
    assert {(environment["MASTER_ADDR"], environment["MASTER_PORT"]) for environment in environments} == {("10.0.0.9", "2345")}
    assert {environment["OMP_NUM_THREADS"] for environment in environments} == {"3"}
    assert "CUDA_VISIBLE_DEVICES" not in environments[0]


def test_a_fraction_of_a_core_is_one_thread() -> None:
    assert group_environment([place("a", "10.0.0.9")], (1, 2), 0.5)[0]["OMP_NUM_THREADS"] == "1"


def test_local_rank_is_the_number_of_the_device() -> None:
    places = [place("a", "10.0.0.9", "3"), place("a", "10.0.0.9", "1"), place("b", "10.0.0.10", "0")]
    environments = group_environment(places, (1, 2), 1.0)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["3,1", "3,1", "0"]
