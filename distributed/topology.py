"""Which rank this process is, who shares experts and tables with it, and the process groups that connect them.

The world is data-parallel ranks. Expert-parallel groups are slices of it: ranks [k*ep, (k+1)*ep) share one set of
experts, and ranks that own the same experts (equal rank modulo ep) reduce expert gradients among themselves.

    world 4, ep 2:   expert groups [0 1] [2 3]     data groups [0 2] [1 3]

Tables are shared in the same way, by as many ranks or by another number of them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distributed.errors import RunError


@dataclass(frozen=True)
class Partition:
    """A cut of the world into runs of `size` ranks. A run shares something (`group`), ranks equal modulo `size` hold the same part of
    it (`data_group`), and `rank` is this one's number in its run. The groups are None where the topology has none."""

    size: int
    rank: int
    group: dist.ProcessGroup | None
    data_group: dist.ProcessGroup | None


UNCUT = Partition(1, 0, None, None)


@dataclass(frozen=True)
class Topology:
    """This rank's place. The groups are None when there is one process and no process group."""

    rank: int
    world: int
    local_rank: int
    expert_parallel: int
    device: torch.device
    backend: str
    expert_group: dist.ProcessGroup | None
    data_group: dist.ProcessGroup | None
    world_group: dist.ProcessGroup | None
    tables: Partition = UNCUT

    @property
    def experts(self) -> Partition:
        """Who shares experts."""
        return Partition(self.expert_parallel, self.expert_rank, self.expert_group, self.data_group)

    @property
    def forward_meets(self) -> bool:
        """Whether a forward has collectives, so that a rank without data must run it too."""
        return self.experts.size > 1 or self.tables.size > 1

    @property
    def expert_rank(self) -> int:
        """This rank's number in its expert-parallel group."""
        return self.rank % self.expert_parallel


def init_topology(
    expert_parallel: int = 1,
    *,
    table_parallel: int = 1,
    device: str = "auto",
    timeout_seconds: float = 600.0,
    use_deepspeed: bool | None = None,
) -> Topology:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*, meet the other ranks and make the groups.

    Args:
        expert_parallel: ranks that share one set of experts; divides the world.
        table_parallel: ranks that share one set of tables; divides the world.
        device: `auto` (an accelerator where there is one), `cpu`, `cuda` or `cuda:<n>`.
        timeout_seconds: how long a collective may wait for its peers, in every group.
        use_deepspeed: make DeepSpeed use the same groups; None: when it is installed. A lone process without a
            launcher's environment gets a process group only with DeepSpeed, which cannot do without.

    Raises:
        RunError: the environment, `expert_parallel` or `table_parallel` is wrong, or there is no such device.
    """
    rank, world, local_rank = (_from_environment(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and (world > 1 or "RANK" not in missing):
        raise RunError(f"{' and '.join(missing)} must be set for a world of {world}, as torchrun and `launch.sh train` do")
    if not 0 <= rank < world:
        raise RunError(f"RANK is {rank} and WORLD_SIZE is {world}; ranks count from 0 to WORLD_SIZE-1")
    for field, size in (("expert_parallel", expert_parallel), ("table_parallel", table_parallel)):
        if size < 1 or world % size:
            raise RunError(f"{field}.size is {size}, which does not divide {world} workers")
    if use_deepspeed is None:
        use_deepspeed = importlib.util.find_spec("deepspeed") is not None
    place = _choose_device(device, local_rank)
    backend = "nccl" if place.type == "cuda" else "gloo"
    if "RANK" not in os.environ and not use_deepspeed:
        return Topology(rank, world, local_rank, expert_parallel, place, backend, None, None, None)
    timeout = timedelta(seconds=timeout_seconds)
    _meet(rank, world, place, timeout)
    experts = tables = _make_partition(rank, world, expert_parallel, timeout)
    if table_parallel != expert_parallel:
        tables = UNCUT if table_parallel == 1 else _make_partition(rank, world, table_parallel, timeout)
    world_group: Any = dist.new_group(list(range(world)), timeout=timeout)
    topology = Topology(rank, world, local_rank, expert_parallel, place, backend, experts.group, experts.data_group, world_group, tables)
    if use_deepspeed:
        _share_with_deepspeed(topology, timeout)
    return topology


_releases: list[Callable[[], None]] = []


def before_close(release: Callable[[], None]) -> None:
    """Have `close_topology` call `release` first: for what holds groups in a way that nobody else would end.

    A group that is held keeps its threads, each of which wakes a hundred times a second on gloo.
    """
    _releases.append(release)


def close_topology(topology: Topology | None = None, *, failed: bool | None = None) -> None:
    """Leave the process group and forget it, DeepSpeed's part included; a new one may follow. Safe to call twice.

    Ranks that finish meet at a barrier first (a rank that leaves early was seen to crash its peers at exit). A rank that
    `failed` does not wait: closing its connections tells its peers at once. None: whether an exception is on its way.
    """
    if failed is None:
        failed = sys.exc_info()[0] is not None
    if dist.is_initialized():
        if not failed:
            dist.barrier()
            for release in _releases:
                release()
        dist.destroy_process_group()
    _releases.clear()
    if "deepspeed.comm.comm" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.utils import groups

        groups._release_process_group_references()
        comm.cdb = None


def expert_group_ranks(world: int, expert_parallel: int) -> list[list[int]]:
    """The ranks of every expert-parallel group."""
    return [list(range(first, first + expert_parallel)) for first in range(0, world, expert_parallel)]


def data_group_ranks(world: int, expert_parallel: int) -> list[list[int]]:
    """The ranks of every group that owns the same experts."""
    return [list(range(first, world, expert_parallel)) for first in range(expert_parallel)]


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise RunError(f"environment variable {name} is '{text}'; it must be a whole number from 0 up")
    return int(text)


def _choose_device(name: str, local_rank: int) -> torch.device:
    """The device of this process. A launcher may show each worker one accelerator only: then that one."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda") and not name.startswith("cuda:"):
        raise RunError(f"device is '{name}'; choose auto, cpu, cuda or cuda:<n>")
    count = torch.cuda.device_count()
    index = int(name[5:]) if name.startswith("cuda:") and name[5:].isdigit() else local_rank
    if count == 1 and not name.startswith("cuda:"):
        index = 0
    if index >= count:
        raise RunError(f"worker {local_rank} of this machine wants accelerator {index}, but there are {count}; start fewer workers")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _meet(rank: int, world: int, device: torch.device, timeout: timedelta) -> None:
    # Checkpoint and metric exchanges carry host tensors, so an accelerator's world has both backends.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=rank, world_size=world)


def _make_partition(rank: int, world: int, size: int, timeout: timedelta) -> Partition:
    """Every rank makes all groups in the same order, and keeps its own."""
    mine: list[Any] = []
    for layout in (expert_group_ranks(world, size), data_group_ranks(world, size)):
        groups = [dist.new_group(ranks, timeout=timeout) for ranks in layout]
        mine.append(next(group for ranks, group in zip(layout, groups, strict=True) if rank in ranks))
    return Partition(size, rank % size, *mine)


def _share_with_deepspeed(topology: Topology, timeout: timedelta) -> None:
    """Start DeepSpeed's communication over torch's and hand it our groups.

    They have the layout of `deepspeed.utils.groups._create_expert_and_data_parallel` (0.19.8), which makes only
    what is missing; its own would keep torch's default time limit of 30 minutes.
    """
    import deepspeed
    from deepspeed.utils import groups, logger

    logger.setLevel("WARNING")
    # Compiled with the host's C++ compiler at start-up (half a minute, a crash without one); training never uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(topology.backend, verbose=False, timeout=timeout)
    groups._WORLD_GROUP = topology.world_group
    # It knows partitions by their size alone: two of equal size have the same groups.
    for part in {part.size: part for part in (topology.experts, topology.tables) if part.group is not None}.values():
        name, first = f"ep_size_{part.size}", topology.rank - part.rank
        groups._EXPERT_PARALLEL_GROUP[name] = part.group
        groups._EXPERT_PARALLEL_GROUP_RANKS[name] = range(first, first + part.size)
        groups._EXPERT_DATA_PARALLEL_GROUP[name] = part.data_group
        groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = range(part.rank, topology.world, part.size)
        groups._create_expert_and_data_parallel(part.size)
