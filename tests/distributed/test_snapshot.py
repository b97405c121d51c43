"""The copy that a save makes while training goes on: late, piece by piece, but of what was there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed.checkpoint import snapshot
from distributed.checkpoint.safetensors_file import header_bytes, parse_header
from distributed.checkpoint.snapshot import HostBuffer

CHUNK = 64


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 3 * CHUNK)
    monkeypatch.setattr(snapshot, "COPY_BYTES", CHUNK)


def state() -> dict[str, Tensor]:
    """Types of all widths, one of several pieces, one empty, one that is no plain stretch of memory."""
    return {
        "long": torch.arange(100.0),
        "wide": torch.arange(9.0, dtype=torch.float64),
        "narrow": torch.arange(33.0).to(torch.bfloat16),
        "bytes": torch.arange(70, dtype=torch.uint8),
        "empty": torch.empty(0),
        "strided": torch.arange(40.0)[::2],
    }


def parsed(file: bytes) -> dict[str, Tensor]:
    n_header = header_bytes(file[:8])
    found = {}
    for name, entry in parse_header(file[:n_header]).items():
        start = n_header + entry.start
        raw = torch.tensor(list(file[start : start + entry.n_bytes]), dtype=torch.uint8)
        found[name] = raw.view(entry.dtype).view(entry.shape)
    return found


@pytest.mark.parametrize("chunks_before", [0, 1, 2, 5, 100])
def test_tensors_may_change_once_it_is_settled(chunks_before: int) -> None:
    live, expected = state(), state()
    taken, buffer = bytearray(), HostBuffer()
    snapshot = buffer.take(live, {})
    for number, chunk in enumerate(snapshot.chunks()):
        taken += chunk
        if number == chunks_before:
            snapshot.settle()
            for tensor in live.values():
                tensor.fill_(7)
    found = parsed(bytes(taken))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_nothing_is_copied_before_it_is_asked_for() -> None:
    live = state()
    snapshot = HostBuffer().take(live, {})
    snapshot.copy_until(1)
    live["wide"].fill_(-1.0)  # the widest type comes first
    live["bytes"].fill_(255)
    found = parsed(b"".join(bytes(chunk) for chunk in snapshot.chunks()))
    assert torch.equal(found["wide"][:8], state()["wide"][:8]) and found["wide"][8] == -1.0, "copied up to the first piece"
    assert found["bytes"].unique().tolist() == [255]


def test_the_block_serves_again() -> None:
    buffer = HostBuffer()
    first = b"".join(bytes(chunk) for chunk in buffer.take(state(), {}).chunks())
    other = {name: tensor + 1 for name, tensor in state().items()}
    second = b"".join(bytes(chunk) for chunk in buffer.take(other, {}).chunks())
    assert all(torch.equal(parsed(second)[name], tensor) for name, tensor in other.items())
    assert all(torch.equal(parsed(first)[name], tensor) for name, tensor in state().items())
