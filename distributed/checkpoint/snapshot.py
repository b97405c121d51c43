"""Copies of a rank's tensors in host memory, laid out as the file that will hold them: the writer only has to stream it.

A state changes only when the optimizer steps. Until then the writer copies, piece by piece, just before it writes; what is left when
the optimizer is due, `settle` copies. A save in a step that is longer than the copy thus costs the training thread nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed.checkpoint.disk_file import PAGE
from distributed.checkpoint.safetensors_file import Entry, body_bytes, header_of, plan
from distributed.fragment import Fragment

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Piece:
    """Up to CHUNK_BYTES of a tensor that are still to be copied: they end at byte `stop` of the body."""

    source: Tensor
    target: Tensor
    stop: int


class Snapshot:
    """A safetensors file in memory: its header, and the bytes of all tensors in one block, some of which may be yet to come.

    Args:
        pieces: what is yet to be copied, in order of place.
    """

    def __init__(self, header: bytes, body: Tensor, pieces: list[Piece]) -> None:
        self.header, self.body = header, body
        self._pieces, self._copied = pieces, 0
        self._copying = threading.Lock()

    def settle(self) -> None:
        """Copy what is left; from now on the tensors may change."""
        self.copy_until(len(self.body))

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file in pieces, without another copy."""
        yield self.header
        view = self.body.numpy().data
        for start in range(0, len(view), CHUNK_BYTES):
            self.copy_until(start + CHUNK_BYTES)
            yield view[start : start + CHUNK_BYTES]

    def copy_until(self, stop: int) -> None:
        """Have all bytes of the body before `stop`. Any thread may ask."""
        while self._copy_next(stop):
            pass

    def _copy_next(self, stop: int) -> bool:
        """One piece, so that another thread that asks never waits for more; False when there is none before `stop`."""
        with self._copying:
            if self._copied == len(self._pieces):
                self._pieces, self._copied = [], 0  # let go of the tensors
                return False
            piece = self._pieces[self._copied]
            if piece.stop - piece.target.numel() * piece.target.itemsize >= stop:
                return False
            piece.target.copy_(piece.source)
            self._copied += 1
            return True


class HostBuffer:
    """One block of host memory, kept between saves: touching fresh memory costs several times the copy itself.

    It begins on a page, as direct writes ask. With an accelerator it is pinned, so that copies need no second step.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)

    def take(self, live: Mapping[str, Tensor]) -> Snapshot:
        """Begin to copy: tensors of a device now, those in host memory as the snapshot is read or settled.

        The snapshot lives until the next call.
        """
        entries = plan(live)
        size = body_bytes(entries)
        if self._block.numel() < size:
            self._block = torch.empty(0, dtype=torch.uint8)  # first give back, then ask for more
            block = torch.empty(size + PAGE, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self._block = block[-block.data_ptr() % PAGE :]
        pieces: list[Piece] = []
        for name, tensor in live.items():
            source, target = tensor.detach(), self._view(entries[name])
            if source.device.type == "cpu" and source.is_contiguous():
                pieces += _pieces(source, target, entries[name].start)
            else:
                target.copy_(source, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return Snapshot(header_of(entries), self._block[:size], sorted(pieces, key=lambda piece: piece.stop))

    def _view(self, entry: Entry) -> Tensor:
        return self._block[entry.start : entry.start + entry.n_bytes].view(entry.dtype).view(entry.shape)


def _pieces(source: Tensor, target: Tensor, start: int) -> list[Piece]:
    n_entries = CHUNK_BYTES // source.itemsize
    stop, pieces = start, []
    for part, place in zip(source.view(-1).split(n_entries), target.view(-1).split(n_entries), strict=True):
        stop += part.numel() * part.itemsize
        pieces.append(Piece(part, place, stop))
    return pieces


def live_tensors(fragments: list[Fragment], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a rank's file holds, by key: "<state>/<parameter>", "buffer/<name>", "random/<device>"."""
    live = {f"{state}/{fragment.name}": view for fragment in fragments for state, view in fragment.tensors.items()}
    live |= {f"buffer/{name}": tensor for name, tensor in buffers.items()}
    live["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        live["random/cuda"] = torch.cuda.get_rng_state()
    return live
