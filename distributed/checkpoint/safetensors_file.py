"""The safetensors format, as far as checkpoints use it: eight bytes of header length, a JSON header, then raw tensors.

Written and read by range here, because the library's writer makes a second copy of everything and its reader maps local files only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed.checkpoint.disk_file import PAGE

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its type and shape, and where its bytes begin after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def plan(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Where each tensor goes: wide types first, so that each lies at a multiple of its own size."""
    entries, start = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        entries[name] = Entry(tensor.dtype, tuple(tensor.shape), start)
        start += entries[name].n_bytes
    return entries


def body_bytes(entries: Mapping[str, Entry]) -> int:
    """Bytes of all tensors together."""
    return max((entry.start + entry.n_bytes for entry in entries.values()), default=0)


def header_of(entries: Mapping[str, Entry]) -> bytes:
    """What stands in front of the tensors: whole pages, so that they begin on one and can be written past the page cache."""
    fields = {
        name: {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [entry.start, entry.start + entry.n_bytes]}
        for name, entry in entries.items()
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text


def header_bytes(first_eight: bytes) -> int:
    """Bytes in front of the tensors, from the first eight of them."""
    return 8 + int.from_bytes(first_eight, "little")


def parse_header(header: bytes) -> dict[str, Entry]:
    """Entries of a header; raises ValueError or KeyError when it is none."""
    fields = json.loads(header[8:])
    return {
        name: Entry(_TYPES[field["dtype"]], tuple(field["shape"]), field["data_offsets"][0])
        for name, field in fields.items()
        if name != "__metadata__"
    }
