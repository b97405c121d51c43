"""Reading pieces of a checkpoint: of each piece only what is asked for, never a whole file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from distributed.checkpoint.manifest import DamagedError, Piece, read_manifest
from distributed.checkpoint.ranges import overlaps
from distributed.errors import RunError
from distributed.fragment import Fragment


class Reader:
    """An open checkpoint folder. Its files are mapped when first needed and released by `close`."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            RunError: its manifest is damaged.
        """
        self.path = path
        try:
            self.manifest = read_manifest(path)
        except DamagedError as fault:
            raise RunError(f"checkpoint {path} is damaged: {fault}; choose another one") from None
        self._files: dict[str, Any] = {}
        self._pieces: dict[str, list[Piece]] = defaultdict(list)
        for piece in self.manifest.pieces:
            self._pieces[piece.name].append(piece)

    def close(self) -> None:
        """Release the files."""
        self._files.clear()

    def fill(self, fragment: Fragment) -> None:
        """Overwrite the fragment's tensors with what the checkpoint holds of them.

        Raises:
            RunError: a state or some entries are not there.
        """
        filled = sum(self._copy_common(piece, fragment) for piece in self._pieces[fragment.name])
        wanted = fragment.stop - fragment.start
        if filled != wanted:
            raise RunError(f"checkpoint {self.path} holds {filled} of {wanted} entries of '{fragment.name}'; choose another one")

    def tensor(self, file: str, key: str) -> Tensor | None:
        """A whole tensor, or None when `file` has no such key."""
        opened = self._opened(file)
        found: Tensor | None = opened.get_tensor(key) if key in opened.keys() else None  # noqa: SIM118 (no mapping, only `keys`)
        return found

    def _copy_common(self, piece: Piece, fragment: Fragment) -> int:
        """Copy what piece and fragment share, for every state; how many entries that is."""
        copies = overlaps(piece.place, (fragment.box, fragment.start, fragment.stop))
        if not copies:
            return 0
        for state, view in fragment.tensors.items():
            if state not in piece.states:
                raise RunError(f"checkpoint {self.path} has no '{state}' of '{piece.name}': set train.optimizer to what it was")
            source = self._opened(piece.file).get_slice(f"{state}/{piece.name}")
            for copy in copies:
                read = source[copy.source_start : copy.source_start + copy.length]
                view[copy.target_start : copy.target_start + copy.length].copy_(read)
        return sum(copy.length for copy in copies)

    def _opened(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = safe_open(self.path / file, framework="pt")
        return self._files[file]
