"""What `bench forms` compares gives equal gradients, its floors are as a hand counts them, and it names the fastest form."""

from __future__ import annotations

import pytest
import torch

from benchmarks.form_floors import form_floors
from benchmarks.forms import floors_of, main, medians, passes, report
from benchmarks.kernel_forms import Shape
from kernels.expert_mlp_triton import FORMS
from model.paper import PAPER

ROUTES, WIDTH, NARROW, EXPERTS = 65536 * 16, 1024, 128, 387  # of MoEUT-244M
BF16, INT64 = 2, 8


def test_the_forms_give_the_same_gradients_each_time_they_are_called() -> None:
    found = passes(Shape(16, 8, 3, 2), 20, torch.float32, "cpu")
    assert [*found] == [*FORMS, "dense"]
    first = found["two-kernel"].backward()
    for name in ("two-kernel", "fused windowed"):
        again = found[name].backward()
        assert len(again) == 4 and all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(first, again, strict=True))
    times = medians({"dense": found["dense"]}, 1, "cpu")
    assert [*times] == ["dense"] and min(times["dense"]) > 0


def test_the_fastest_form_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert report({"a": (1.0, 4.0), "b": (2.0, 2.0), "dense": (1.0, 1.0)}, {"a": (0.5, 1.5)}) == "b"
    line = capsys.readouterr().out.splitlines()[0].split()
    assert line == ["a", "1000.000", "(500.00)", "4000.000", "(1500.00)", "5000.000", "(2000.00)", "2.50"]


def test_floors_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    floors = form_floors(PAPER["244M"], 65536)
    wide, hidden, weights, rows = (BF16 * n for n in (ROUTES * WIDTH, ROUTES * NARROW, EXPERTS * WIDTH * NARROW, 65536 * WIDTH))
    index, again = INT64 * ROUTES, BF16 * ROUTES // 128 * WIDTH * NARROW  # an expert's weights again for each tile of 128 routes
    assert floors["two-kernel"]["up"].bytes == wide + weights + hidden + index
    assert floors["two-kernel windowed"]["up"].bytes == rows + 8 * weights + hidden + index
    assert floors["two-kernel windowed"]["up"].cached == floors["two-kernel"]["up"].cached == wide + again + hidden
    assert floors["two-kernel windowed"]["d up"].bytes == rows + 4 * hidden + weights + index
    assert floors["fused windowed"]["up and down"].bytes == rows + 16 * weights + hidden + wide + index
    assert floors["fused"]["d hidden and x"].cached == 2 * wide + 2 * again + 2 * hidden
    assert {sum(work.flops for work in launches.values()) for name, launches in floors.items() if name != "atomic sums"} == {
        6 * 2 * ROUTES * WIDTH * NARROW + 2 * ROUTES * WIDTH
    }
    assert {*FORMS} < {*floors}
    whole = sum(work.bytes for work in floors["two-kernel"].values()) / 3.35e12  # each launch of it is bound by memory on H100
    assert sum(floors_of("244M", 65536, "H100")["two-kernel"]) == pytest.approx(whole, rel=1e-9)
    assert main(["--size", "44M"]) == 0
    assert "fused windowed" in capsys.readouterr().out
