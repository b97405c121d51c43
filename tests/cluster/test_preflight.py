"""The preflight: an odd host is named, a wrong sum is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.network import LOOPBACK, free_port
from cluster.preflight import code_digest, environment_facts, odd_ones

RANK = """
import sys
from cluster import preflight
from cluster.errors import ClusterError

facts = preflight.environment_facts
preflight.environment_facts = lambda: facts() | dict(pair.split("=") for pair in sys.argv[1:])
try:
    preflight.preflight(20.0)
    print("alike")
except (ClusterError, RuntimeError) as fault:
    print(type(fault).__name__, fault)
"""


def meet(*changes: list[str]) -> list[str]:
    """What ranks say whose facts are changed so."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(len(changes)), "MASTER_ADDR": LOOPBACK, "MOOTRON_PREFLIGHT_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    root = str(Path(__file__).resolve().parents[2])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *change],
            env={**shared, "RANK": str(rank), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, change in enumerate(changes)
    ]
    return [rank.communicate()[0].strip() for rank in ranks]


def test_an_odd_host_is_named_by_all() -> None:
    """That alike ones pass is seen wherever a group starts, in test_worker_group.py for one."""
    said = meet([], ["host=odd", "torch=2.11.0"])
    assert len(set(said)) == 1 and said[0].startswith("ClusterError ")
    assert "host odd (rank 1) has torch 2.11.0, most ranks have" in said[0]


def test_the_majority_is_right() -> None:
    facts = [environment_facts() | {"host": host, "code": code} for host, code in (("a", "1"), ("b", "2"), ("c", "2"))]
    assert "host a (rank 0) has code 1, most ranks have 2" in odd_ones(facts)
    assert odd_ones(facts[1:]) == ""
    json.dumps(facts)


def test_the_digest_follows_the_code_and_nothing_else(tmp_path: Path) -> None:
    room = tmp_path / "model"
    room.mkdir()
    (room / "one.py").write_text("x = 1\n")
    before = code_digest(tmp_path)
    (room / "__pycache__").mkdir()
    (room / "notes.txt").write_text("no code")
    assert code_digest(tmp_path) == before
    (room / "one.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != before


def test_a_wrong_sum_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from cluster.preflight import check_sum

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(3).index_fill_(0, torch.tensor([7]), 0.0))
    with pytest.raises(RuntimeError, match="came out wrong on rank 0, host a"):
        check_sum(0, 2, ["a", "b"])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(3))
    check_sum(0, 2, ["a", "b"])
