"""Copies of a rank's tensors in host memory, laid out as the file that will hold them: the writer only has to stream it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed.checkpoint.disk_file import PAGE
from distributed.checkpoint.safetensors_file import Entry, body_bytes, header_of, plan
from distributed.fragment import Fragment

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Snapshot:
    """A safetensors file in memory: its header, and the bytes of all tensors in one block."""

    header: bytes
    body: Tensor

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file in pieces, without another copy."""
        yield self.header
        view = self.body.numpy().data
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


class HostBuffer:
    """One block of host memory, kept between saves: touching fresh memory costs several times the copy itself.

    It begins on a page, as direct writes ask. With an accelerator it is pinned, so that copies need no second step.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)

    def take(self, live: Mapping[str, Tensor]) -> Snapshot:
        """Copy tensors of any device; done on return. The snapshot lives until the next call."""
        entries = plan(live)
        size = body_bytes(entries)
        if self._block.numel() < size:
            self._block = torch.empty(0, dtype=torch.uint8)  # first give back, then ask for more
            block = torch.empty(size + PAGE, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self._block = block[-block.data_ptr() % PAGE :]
        for name, tensor in live.items():
            self._view(entries[name]).copy_(tensor.detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return Snapshot(header_of(entries), self._block[:size])

    def _view(self, entry: Entry) -> Tensor:
        return self._block[entry.start : entry.start + entry.n_bytes].view(entry.dtype).view(entry.shape)


def live_tensors(fragments: list[Fragment], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a rank's file holds, by key: "<state>/<parameter>", "buffer/<name>", "random/<device>"."""
    live = {f"{state}/{fragment.name}": view for fragment in fragments for state, view in fragment.tensors.items()}
    live |= {f"buffer/{name}": tensor for name, tensor in buffers.items()}
    live["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        live["random/cuda"] = torch.cuda.get_rng_state()
    return live
