"""The windows of a prepared set, by global id.

Global ids count the windows of all sources one source after another, in the manifest's order; they do not change when
only one source is opened. Legend: T predicted tokens of a window, n windows asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Split, load_manifest, split_folder
from data_pipeline.shards import ShardReader, open_shards


class Windows:
    """Windows of one split, of all sources or of one.

    Args:
        skip_damaged: `read_ragged` leaves out what cannot be read and notes it in `damaged`.

    Attributes:
        damaged: what is wrong with windows that were left out, by id.
        counts: windows of each opened source.
        ids: the range of global ids of the opened sources.
        seq_len: T.
        vocab_size: of the tokenizer; every id is below it.
        end_of_document: the token that ends a document, or None.
    """

    def __init__(self, folder: Path, split: Split, source: str | None = None, skip_damaged: bool = False) -> None:
        manifest = load_manifest(folder)
        counts = manifest.windows(split)
        if source is not None and source not in counts:
            raise DataError(f"{folder} has no source '{source}'; sources: {', '.join(counts)}")
        self.folder = folder
        self.damaged: dict[int, str] = {}
        self._skip_damaged = skip_damaged
        self.split: Split = split
        self.seq_len = manifest.seq_len
        self.vocab_size = manifest.tokenizer.vocab_size
        self.end_of_document = manifest.tokenizer.end_of_document
        self._names = list(counts)
        self._starts = np.cumsum([0, *counts.values()])
        opened = range(len(counts)) if source is None else [self._names.index(source)]
        self.counts = {self._names[place]: counts[self._names[place]] for place in opened}
        self.ids = range(int(self._starts[opened[0]]), int(self._starts[opened[-1] + 1]))
        self._shards: dict[str, tuple[list[ShardReader], np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        # Readers are opened anew in a loader's worker.
        return {**self.__dict__, "_shards": {}}

    def source_of(self, sample_id: int) -> str:
        """The source that a global id belongs to."""
        return self._names[self._locate(sample_id)[0]]

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Whole windows, int64 [n, T + 1]: inputs are `[:, :-1]`, targets `[:, 1:]`.

        Raises:
            DataError: a shard is damaged or missing, or a window is the shorter last one of a held-out split.
        """
        rows = np.empty((len(ids), self.seq_len + 1), np.int64)
        for row, sample_id in enumerate(ids):
            rows[row] = self._whole(sample_id)
        return rows

    def read_undamaged(self, ids: Sequence[int]) -> tuple[list[int], np.ndarray, dict[int, str]]:
        """The ids that can be read, their windows as `read` gives them, and for each of the others what is wrong."""
        kept, rows, faults = [], [], {}
        for sample_id in ids:
            try:
                rows.append(self._whole(sample_id))
                kept.append(sample_id)
            except DataError as fault:
                faults[sample_id] = str(fault)
        return kept, np.stack(rows).astype(np.int64) if rows else self.read([]), faults

    def read_ragged(self, ids: Sequence[int]) -> list[np.ndarray]:
        """Windows of 2 to T + 1 tokens, int64 each: every source's last held-out window may be short.

        Raises:
            DataError: a shard is damaged or missing, unless `skip_damaged`.
        """
        rows = []
        for sample_id in ids:
            try:
                rows.append(self._tokens(sample_id).astype(np.int64))
            except DataError as fault:
                if not self._skip_damaged:
                    raise
                self.damaged[sample_id] = str(fault)
        return rows

    @property
    def _mend(self) -> str:
        return f"remove {self.folder} and prepare it again"

    def _whole(self, sample_id: int) -> np.ndarray:
        tokens = self._tokens(sample_id)
        if len(tokens) != self.seq_len + 1:
            lengths = f"{len(tokens)} tokens, not {self.seq_len + 1}"
            raise DataError(f"window {sample_id} of {self.split} has {lengths}; read it with read_ragged")
        return tokens

    def _locate(self, sample_id: int) -> tuple[int, int]:
        if sample_id not in self.ids:
            raise IndexError(f"window {sample_id} is not in {self.ids.start}..{self.ids.stop - 1} of {self.split}")
        place = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        return place, int(sample_id - self._starts[place])

    def _tokens(self, sample_id: int) -> np.ndarray:
        place, index = self._locate(sample_id)
        readers, ends = self._open(self._names[place])
        shard = int(np.searchsorted(ends, index, side="right"))
        first = int(ends[shard - 1]) if shard else 0
        where = split_folder(self.folder, self._names[place], self.split) / f"shard.{shard:05d}.mds"
        try:
            sample = readers[shard].get_item(index - first)
        except FileNotFoundError:
            raise DataError(f"shard {where} is missing; {self._mend}") from None
        except (ValueError, IndexError, OSError, KeyError) as fault:
            raise DataError(f"shard {where} is damaged: {fault}; {self._mend}") from None
        tokens = np.asarray(sample["tokens"])
        # streaming reads by offset and does not look at what it finds there.
        if int(sample["id"]) != index or not 2 <= len(tokens) <= self.seq_len + 1:
            raise DataError(f"shard {where} is damaged: window {index} is not in its place; {self._mend}")
        if zlib.crc32(tokens.tobytes()) != int(sample["check"]) or tokens.max() >= self.vocab_size:
            raise DataError(f"shard {where} is damaged: window {index} has other tokens than were written; {self._mend}")
        return tokens

    def _open(self, source: str) -> tuple[list[ShardReader], np.ndarray]:
        if source not in self._shards:
            readers = open_shards(split_folder(self.folder, source, self.split))
            ends = np.cumsum([reader.samples for reader in readers])
            if not len(ends) or ends[-1] != self.counts[source]:
                place = split_folder(self.folder, source, self.split)
                raise DataError(f"{place} does not hold the windows its manifest names; {self._mend}")
            self._shards[source] = (readers, ends)
        return self._shards[source]
