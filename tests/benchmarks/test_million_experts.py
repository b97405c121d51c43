"""`bench million_experts` trains, and says what it took."""

from __future__ import annotations

import pytest

from benchmarks.million_experts import main


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_fall(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--side", "12", "--width", "8", "--tokens", "512", "--steps", "3", "--precision", precision]) == 0
    told = capsys.readouterr().out
    assert told.startswith("12^2 experts of width 8, 128 a token") and "rows of one table (never made) 1 MiB" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tokens", "127"], "argument --tokens: 127 is too small: two micro-batches of windows of 64, so give 128 or more"),
        (["--side", "3"], "argument --side: 3 is too small"),
        (["--width", "1"], "argument --width: 1 is too small"),
        (["--steps", "1"], "argument --steps: 1 is too small"),
        (["--steps", "few"], "argument --steps: invalid whole number value: 'few'"),
    ],
)
def test_what_cannot_be_trained_is_named(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert told in capsys.readouterr().err
