"""The copy that a save makes while training goes on: late, piece by piece, but of what was there."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import torch
from torch import Tensor

from distributed.checkpoint import snapshot
from distributed.checkpoint.safetensors_file import header_bytes, parse_header
from distributed.checkpoint.snapshot import Copy, HostBuffer, Snapshot

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


def test_tensors_may_change_once_it_is_settled() -> None:
    live, expected = state(), state()
    snapshot = HostBuffer().take(live, {})
    snapshot.settle()
    for tensor in live.values():
        tensor.fill_(7)
    found = parsed(b"".join(bytes(chunk) for chunk in snapshot.chunks()))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_nothing_is_copied_before_it_is_asked_for() -> None:
    live = state()
    snapshot = HostBuffer().take(live, {"other": torch.zeros(3)})
    for tensor in live.values():
        tensor.fill_(7)
    found = parsed(b"".join(bytes(chunk) for chunk in snapshot.chunks()))
    assert all((found[name] == 7).all() for name in live if name != "strided"), "copied late"
    assert torch.equal(found["strided"], state()["strided"]) and torch.equal(found["other"], torch.zeros(3)), "copied at once"


def test_the_one_who_settles_waits_for_a_copy_that_another_thread_makes() -> None:
    begun, release = threading.Event(), threading.Event()

    class Slow:
        def copy_(self, source: Tensor) -> None:
            begun.set()
            assert release.wait(30.0)
            log.append("copied")

    log: list[str] = []
    snapshot = Snapshot(b"", torch.empty(0, dtype=torch.uint8), [Copy(torch.empty(0), cast(Tensor, Slow()))])
    writer = threading.Thread(target=snapshot.settle)
    writer.start()
    assert begun.wait(30.0)
    trainer = threading.Thread(target=lambda: (snapshot.settle(), log.append("settled")))
    trainer.start()
    trainer.join(0.05)  # without the lock it would be through by now
    release.set()
    writer.join(30.0)
    trainer.join(30.0)
    assert log == ["copied", "settled"]


def test_the_block_serves_again() -> None:
    buffer = HostBuffer()
    first = b"".join(bytes(chunk) for chunk in buffer.take(state(), {}).chunks())
    other = {name: tensor + 1 for name, tensor in state().items()}
    second = b"".join(bytes(chunk) for chunk in buffer.take(other, {}).chunks())
    assert all(torch.equal(parsed(second)[name], tensor) for name, tensor in other.items())
    assert all(torch.equal(parsed(first)[name], tensor) for name, tensor in state().items())
