"""Reading pieces of a checkpoint: of each piece only what is asked for, never a whole file."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from distributed.checkpoint.manifest import DamagedError, Piece, read_manifest
from distributed.checkpoint.ranges import Copy, overlaps
from distributed.checkpoint.retention import reading
from distributed.checkpoint.safetensors_file import Entry, header_bytes, parse_header
from distributed.checkpoint.storage import Checkpoint
from distributed.errors import RunError
from distributed.fragment import Fragment

READ_BYTES = 32 << 20


class Reader:
    """An open checkpoint. Retention leaves it alone until `close`."""

    def __init__(self, place: Checkpoint | Path) -> None:
        """Open a checkpoint.

        Raises:
            RunError: its manifest is damaged.
        """
        self.checkpoint = Checkpoint.at(place)
        try:
            self.manifest = read_manifest(self.checkpoint)
        except DamagedError as fault:
            raise RunError(f"checkpoint {place} is damaged: {fault}; choose another one") from None
        self._held = ExitStack()
        self._held.enter_context(reading(self.checkpoint))
        self._headers: dict[str, tuple[int, dict[str, Entry]]] = {}
        self._pieces: dict[str, list[Piece]] = defaultdict(list)
        for piece in self.manifest.pieces:
            self._pieces[piece.name].append(piece)

    def close(self) -> None:
        """Let go of the checkpoint."""
        self._held.close()

    def fill(self, fragment: Fragment) -> None:
        """Overwrite the fragment's tensors with what the checkpoint holds of them.

        Raises:
            RunError: a state or some entries are not there.
        """
        filled = sum(self._copy_common(piece, fragment) for piece in self._pieces[fragment.name])
        wanted = fragment.stop - fragment.start
        if filled != wanted:
            raise RunError(f"checkpoint {self.checkpoint} holds {filled} of {wanted} entries of '{fragment.name}'; choose another one")

    def tensor(self, file: str, key: str) -> Tensor | None:
        """A whole tensor, or None when `file` has no such key."""
        first, entries = self._header(file)
        if key not in entries:
            return None
        entry = entries[key]
        found = torch.empty(entry.shape, dtype=entry.dtype)
        self._read(file, first + entry.start, found.view(-1))
        return found

    def _copy_common(self, piece: Piece, fragment: Fragment) -> int:
        """Copy what piece and fragment share, for every state; how many entries that is."""
        copies = overlaps(piece.place, (fragment.box, fragment.start, fragment.stop))
        if not copies:
            return 0
        first, entries = self._header(piece.file)
        for state, view in fragment.tensors.items():
            if state not in piece.states:
                raise RunError(f"checkpoint {self.checkpoint} has no '{state}' of '{piece.name}': set train.optimizer to what it was")
            entry = entries[f"{state}/{piece.name}"]
            for copy in copies:
                for block in copy.blocks(READ_BYTES // entry.dtype.itemsize):
                    self._copy_rows(piece.file, first + entry.start, entry.dtype, block, view)
        return sum(copy.count * copy.length for copy in copies)

    def _copy_rows(self, file: str, start: int, dtype: torch.dtype, block: Copy, view: Tensor) -> None:
        """One read: what lies between the rows costs less than a read of every row."""
        start += block.source_start * dtype.itemsize
        between = block.count - 1
        target = view[block.target_start : block.target_start + between * block.target_step + block.length]
        if not between:
            return self._read(file, start, target, dtype)
        rows = torch.empty(between * block.source_step + block.length, dtype=dtype)
        self._read(file, start, rows)
        target.unfold(0, block.length, block.target_step).copy_(rows.unfold(0, block.length, block.source_step))

    def _read(self, file: str, start: int, target: Tensor, dtype: torch.dtype | None = None) -> None:
        """Fill the one-dimensional `target`, of any device, from entries of type `dtype` at byte `start`; straight into it if it can be."""
        dtype = dtype or target.dtype
        straight = target.device.type == "cpu" and target.dtype is dtype and target.is_contiguous()
        step = target.numel() if straight else READ_BYTES // dtype.itemsize
        for first in range(0, target.numel(), max(step, 1)):
            part = target[first : first + step]
            content = part.detach() if straight else torch.empty(part.shape, dtype=dtype)
            view = content.view(torch.uint8).numpy().data
            self.checkpoint.storage.read_into(self.checkpoint.file(file), start + first * dtype.itemsize, view)
            if not straight:
                part.copy_(content)

    def _header(self, file: str) -> tuple[int, dict[str, Entry]]:
        """Where the tensors of a file begin, and what they are."""
        if file not in self._headers:
            storage, name = self.checkpoint.storage, self.checkpoint.file(file)
            size = header_bytes(storage.read(name, 0, 8))
            self._headers[file] = size, parse_header(storage.read(name, 0, size))
        return self._headers[file]
