"""What `bench checkpoint` calls within its bars, and that its state is saved and loaded whole by both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.checkpoint import report
from benchmarks.checkpoint_state import STATES, Ours, State
from distributed.topology import Topology


def figures(sync: float, asynchronous: float, dcp_async: float, size: float) -> dict[str, Any]:
    extra = {"mootron": sync, "mootron async": asynchronous, "dcp": 9.0, "dcp async": dcp_async}
    ways = {
        # One round is slowed down in its first step, another one in its second: the medians of the places do not see it.
        name: {"extra": [[99.0, 0.0], [seconds, 0.0], [seconds, 99.0]], "stall": [seconds], "behind": [0.0]}
        for name, seconds in extra.items()
    }
    return {
        "world": 2,
        "ways": ways,
        "step": 0.3,
        "bytes_all": 1.2e9,
        "restore": {"mootron": 1.0, "dcp": 1.0},
        "bytes": {"mootron": size, "dcp": 1.0},
    }


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        ((4.0, 0.4, 0.5, 1.02), True),
        ((4.0, 0.5, 0.6, 1.02), False),  # over a tenth of the synchronous
        ((4.0, 0.4, 0.3, 1.02), False),  # dcp's is quicker
        ((4.0, 0.4, 0.5, 1.03), False),  # too many bytes
    ],
)
def test_bars(measured: tuple[float, float, float, float], holds: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(figures(*measured), 100_000_000, 3) is holds
    assert ("ABOVE" in capsys.readouterr().out) is not holds


def test_the_state_comes_back(tmp_path: Path) -> None:
    state = State(24 * 1000, Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None), passes=1)
    saved = {(name, kind): tensor.clone() for name, states in state.tensors.items() for kind, tensor in states.items()}
    assert len(saved) == 24 * len(STATES) and state.bytes == 12 * 24 * 1000
    ours = Ours(state, tmp_path, asynchronous=True)
    ours.save()
    ours.finish()
    for states in state.tensors.values():
        for tensor in states.values():
            tensor.zero_()
    ours.load()
    assert all(torch.equal(state.tensors[name][kind], tensor) for (name, kind), tensor in saved.items())
