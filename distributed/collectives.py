"""Every collective of the project, by name: order log, progress for a hang watch, and errors that say who and what.

gloo pairs collectives by the order of issue and does not notice when two ranks differ: it delivers stale or wrong rows.
So all ranks must issue the same collectives in the same order. `recorded_order` gives a test what a rank issued; a
collective that fails raises with its name, its number and this rank, which gloo's own message leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distributed.topology import Topology

Group = dist.ProcessGroup | None


class CollectiveError(RuntimeError):
    """A collective failed: a peer is gone, or it did not come within the time limit."""


@dataclass
class Progress:
    """The last collective this process entered: its number since the start, and its name."""

    number: int = 0
    name: str = ""


progress = Progress()
_order: list[str] | None = None


class Pending:
    """A collective on its way. It has happened when `wait`, which must be called once, returns."""

    def __init__(self, work: Any, name: str, number: int, buffers: tuple[Tensor, ...]) -> None:
        self._work, self._name, self._number = work, name, number
        self._buffers = buffers  # must outlive the transfer

    def wait(self) -> None:
        """Block (with NCCL: make the stream wait) until the data is there.

        Raises:
            CollectiveError: a peer is gone or did not come in time.
        """
        if _order is not None:
            _order.append(f"await {self._name}")
        with _explained(self._name, self._number):
            self._work.wait()
        self._buffers = ()


def all_to_all(name: str, send: Tensor, receive: Tensor, send_rows: list[int], receive_rows: list[int], group: Group) -> Pending:
    """Start sending `send_rows[r]` rows of `send` to each rank r of `group`, filling `receive` in rank order.

    Args:
        send, receive: contiguous; the row counts add up to their first dimensions.
    """
    if sum(send_rows) != send.shape[0] or sum(receive_rows) != receive.shape[0]:
        raise ValueError(f"{name}: rows {send_rows} -> {receive_rows} do not fit tensors of {send.shape[0]} and {receive.shape[0]} rows")
    number = _enter(name, send.dtype)
    with _explained(name, number):
        work = dist.all_to_all_single(receive, send, receive_rows, send_rows, group=group, async_op=True)
    return Pending(work, name, number, (send, receive))


def all_reduce(name: str, tensor: Tensor, group: Group, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce `tensor` in place over `group`; returned for convenience."""
    _run(name, tensor.dtype, lambda: dist.all_reduce(tensor, op, group=group))
    return tensor


def all_gather(name: str, tensor: Tensor, group: Group) -> Tensor:
    """Equal-shaped tensors of all ranks, stacked: [ranks, *shape]."""
    gathered = tensor.new_empty((dist.get_world_size(group), *tensor.shape))
    _run(name, tensor.dtype, lambda: dist.all_gather_into_tensor(gathered.flatten(), tensor.contiguous().flatten(), group=group))
    return gathered


def barrier(name: str, topology: Topology) -> None:
    """Return when every rank of the world has come."""
    if topology.world_group is not None:
        _run(name, torch.uint8, lambda: dist.barrier(group=topology.world_group))


def largest(number: int, topology: Topology, name: str) -> int:
    """The largest `number` of any rank of the world, the same on all."""
    if topology.world_group is None:
        return number
    votes = torch.tensor([number], device=topology.device)
    return int(all_reduce(name, votes, topology.world_group, dist.ReduceOp.MAX).item())


def any_rank(flag: bool, topology: Topology, name: str) -> bool:
    """Whether `flag` is true on any rank of the world; all ranks get the same answer."""
    return bool(largest(int(flag), topology, name))


@contextmanager
def recorded_order() -> Iterator[list[str]]:
    """Collect what is issued ("name dtype") and awaited ("await name") inside, whatever its sizes.

    The lists of all ranks must be equal.
    """
    global _order
    order: list[str] = []
    _order = order
    try:
        yield order
    finally:
        _order = None


def _run(name: str, dtype: torch.dtype, call: Callable[[], Any]) -> None:
    number = _enter(name, dtype)
    with _explained(name, number):
        call()


def _enter(name: str, dtype: torch.dtype) -> int:
    progress.number += 1
    progress.name = name
    if _order is not None:
        _order.append(f"{name} {str(dtype).removeprefix('torch.')}")
    return progress.number


@contextmanager
def _explained(name: str, number: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as fault:
        raise CollectiveError(f"rank {dist.get_rank()}: collective {number} '{name}' failed: {fault}") from fault
