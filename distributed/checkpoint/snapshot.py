"""Copies of a rank's tensors in host memory, laid out as the file that will hold them: the writer only has to stream it.

Masters and moments change only when the optimizer steps. Until then the writer copies them, before it writes anything: then a save in a
step that is longer than the copy costs the training thread nothing. What is left when the optimizer is due, `settle` copies.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed.checkpoint.disk_file import PAGE
from distributed.checkpoint.safetensors_file import Entry, body_bytes, header_of, plan
from distributed.fragment import Fragment

CHUNK_BYTES = 8 << 20
COPY_BYTES = 1 << 20
"""What is copied at a time. Little, because the training thread may have to wait for a writer of low priority to finish it."""


@dataclass(frozen=True)
class Copy:
    """A part of a tensor that is still to be copied."""

    source: Tensor
    target: Tensor


class Snapshot:
    """A safetensors file in memory: its header, and the bytes of all tensors in one block, some of which may be yet to come.

    Args:
        copies: what is yet to come.
    """

    def __init__(self, header: bytes, body: Tensor, copies: list[Copy]) -> None:
        self.header, self.body = header, body
        self._copies = deque(copies)
        self._copying = threading.Lock()

    def settle(self) -> None:
        """Copy what is left; from then on the tensors may change. Any thread may ask, and two of them share the work."""
        while self._copy_one():
            pass

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file in pieces, without another copy."""
        self.settle()
        yield self.header
        view = self.body.numpy().data
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]

    def _copy_one(self) -> bool:
        """Whether there was something to copy. The lock also makes the one who finds nothing wait for the other's last copy."""
        with self._copying:
            if not self._copies:
                return False
            copy = self._copies.popleft()
            copy.target.copy_(copy.source)
            return True


class HostBuffer:
    """One block of host memory, kept between saves: touching fresh memory costs several times the copy itself.

    It begins on a page, as direct writes ask. With an accelerator it is pinned, so that copies need no second step.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)

    def take(self, states: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Snapshot:
        """A snapshot of both, which lives until the next call.

        Args:
            states: change only when the optimizer steps; those in host memory are copied as the snapshot is read or settled.
            others: copied now.
        """
        live = {**states, **others}
        entries = plan(live)
        self._make_room(body_bytes(entries))
        copies: list[Copy] = []
        for name, entry in entries.items():
            source, target = live[name].detach(), self._view(entry)
            if name in states and source.device.type == "cpu" and source.is_contiguous():
                copies += _in_parts(source, target)
            else:
                target.copy_(source, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return Snapshot(header_of(entries), self._block[: body_bytes(entries)], copies)

    def _make_room(self, size: int) -> None:
        if self._block.numel() < size:
            self._block = torch.empty(0, dtype=torch.uint8)  # first give back, then ask for more
            block = torch.empty(size + PAGE, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self._block = block[-block.data_ptr() % PAGE :]

    def _view(self, entry: Entry) -> Tensor:
        return self._block[entry.start : entry.start + entry.n_bytes].view(entry.dtype).view(entry.shape)


def _in_parts(source: Tensor, target: Tensor) -> list[Copy]:
    n_entries = COPY_BYTES // source.itemsize
    return [Copy(*part) for part in zip(source.view(-1).split(n_entries), target.view(-1).split(n_entries), strict=True)]


def live_tensors(fragments: list[Fragment], buffers: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a rank's file holds, by key: optimizer states "<state>/<parameter>"; and "buffer/<name>", "random/<device>"."""
    states = {f"{state}/{fragment.name}": view for fragment in fragments for state, view in fragment.tensors.items()}
    others = {f"buffer/{name}": tensor for name, tensor in buffers.items()}
    others["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        others["random/cuda"] = torch.cuda.get_rng_state()
    return states, others
