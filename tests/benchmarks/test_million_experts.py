"""`bench million_experts` trains, and says what it took."""

from __future__ import annotations

import pytest

from benchmarks.million_experts import main


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_fall(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--side", "12", "--width", "8", "--tokens", "512", "--steps", "3", "--precision", precision]) == 0
    told = capsys.readouterr().out
    assert told.startswith("12^2 experts of width 8, 128 a token") and "rows of one table (never made) 1 MiB" in told
