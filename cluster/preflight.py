"""Before the first step of every group: do all hosts run the same code, and do sums over the ranks come out right?

Two hosts with another torch, or another state of this project, train without complaint to a result nobody can explain. The ranks
meet at a port of their own, before the trainer makes its groups, so nothing of this stays behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError

PORT = "MOOTRON_PREFLIGHT_PORT"
PACKAGES = ("torch", "deepspeed", "mosaicml-streaming", "numpy")
ROOMS = ("kernels", "model", "data_pipeline", "distributed", "cluster")
CODE_ROOT = Path(__file__).resolve().parent.parent
READ_TIME = timedelta(seconds=10)
_VECTOR = 65_536


def preflight(timeout_seconds: float) -> None:
    """Meet the other ranks at MOOTRON_PREFLIGHT_PORT, compare and add up; nothing for one rank or without that variable.

    Raises:
        ClusterError: a host differs from the others; the message names it and what differs.
        RuntimeError: a rank did not come within `timeout_seconds`, or a sum is wrong.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or PORT not in os.environ:
        return
    from torch import distributed as dist

    rank, timeout = int(os.environ["RANK"]), timedelta(seconds=timeout_seconds)
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ[PORT]), world, is_master=rank == 0, timeout=timeout, wait_for_workers=False
    )
    facts = gather_facts(store, rank, world)
    complaint = odd_ones(facts)
    if complaint:
        raise ClusterError(complaint)
    dist.init_process_group("gloo", store=dist.PrefixStore("sum", store), rank=rank, world_size=world, timeout=timeout)
    try:
        check_sum(rank, world, [fact["host"] for fact in facts])
        dist.barrier()
    finally:
        dist.destroy_process_group()


def gather_facts(store: Any, rank: int, world: int) -> list[dict[str, str]]:
    """What every rank says of its host, by rank.

    Raises:
        RuntimeError: naming the ranks that did not come.
    """
    keys = [f"facts-{other}" for other in range(world)]
    store.set(keys[rank], json.dumps(environment_facts()))
    try:
        store.wait(keys)
    except RuntimeError as fault:
        absent = [other for other, key in enumerate(keys) if not store.check([key])]
        raise RuntimeError(f"preflight: ranks {absent} did not come: {fault}") from None
    facts = [json.loads(store.get(key)) for key in keys]
    store.set(f"read-{rank}", b"")
    if rank == 0:  # which holds the store: if it left now, others could not read what is wrong
        with contextlib.suppress(RuntimeError):
            store.wait([f"read-{other}" for other in range(world)], READ_TIME)
    return facts


def environment_facts() -> dict[str, str]:
    """Versions and code of this host; `host` names it."""
    versions = {name: _version(name) for name in PACKAGES}
    return {"host": socket.gethostname(), "python": platform.python_version(), **versions, "code": code_digest(CODE_ROOT)}


def code_digest(root: Path) -> str:
    """One digest over the project's Python files, whatever their times and places."""
    total = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def odd_ones(facts: list[dict[str, str]]) -> str:
    """Which hosts differ from most ranks, and in what; empty when all are alike."""
    complaints: dict[str, None] = {}
    for name in (name for name in facts[0] if name != "host"):
        common = Counter(fact.get(name) for fact in facts).most_common(1)[0][0]
        for rank, fact in enumerate(facts):
            if fact.get(name) != common:
                complaints[f"host {fact['host']} (rank {rank}) has {name} {fact.get(name)}, most ranks have {common}"] = None
    if not complaints:
        return ""
    return "; ".join(complaints) + "; bring all hosts to the same state (./launch.sh doctor on each), or set cluster.preflight=false"


def check_sum(rank: int, world: int, hosts: list[str]) -> None:
    """Add up values whose sum is known, exact in float64.

    Raises:
        RuntimeError: the sum is wrong on this rank.
    """
    import torch
    from torch import distributed as dist

    ramp_N = torch.arange(_VECTOR, dtype=torch.float64)
    total_N = (rank + 1) * ramp_N
    dist.all_reduce(total_N)
    if not torch.equal(total_N, world * (world + 1) // 2 * ramp_N):
        raise RuntimeError(
            f"preflight: a sum over {world} ranks came out wrong on rank {rank}, host {hosts[rank]}; suspect its memory or network"
        )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
