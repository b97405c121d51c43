"""`bench device` runs pieces, stops those that take too long, skips what cannot run, and writes down only what was measured."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
import torch

from benchmarks import device, on_device
from benchmarks.on_device import PIECES, Piece, run_piece
from cluster.cli import COMMANDS
from cluster.commands.bench import benchmarks


def test_pieces_are_commands_of_at_most_eight_minutes() -> None:
    for piece in PIECES:
        module, command, *rest = shlex.split(piece.words)
        assert piece.minutes <= 8 and (module == "pytest" or (module == "cluster" and command in COMMANDS))
        assert command != "bench" or rest[0] in benchmarks()
    assert len({piece.name for piece in PIECES}) == len(PIECES)


def test_without_an_accelerator_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.main(["--table", str(tmp_path / "RESULTS.md"), "--results", str(tmp_path / "kept")]) == 2
    assert list(tmp_path.iterdir()) == []
    assert device.main(["--list"]) == 0


def test_a_piece_is_kept_and_added(tmp_path: Path) -> None:
    piece = Piece("floors", "cluster bench roofline --sizes 44M", 2)
    file = tmp_path / "RESULTS.md"
    file.write_text("# Results\n\n")
    assert run_piece(piece, tmp_path, file) == 0
    text, kept = file.read_text(), (tmp_path / "floors.txt").read_text()
    assert text.startswith("# Results\n\n## floors\n") and f"torch {torch.__version__}" in text and "exit code 0" in text
    assert "ffn as one" in kept and "```text\n" in text and "ffn as one" in text


def test_a_failure_and_a_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "RESULTS.md"
    assert run_piece(Piece("bad", "cluster bench nothing", 2), tmp_path, file) == 2
    assert "exit code 2" in file.read_text() and "unknown benchmark" in (tmp_path / "bad.txt").read_text()
    assert run_piece(Piece("absent", "cluster bench roofline", 1, ("json", "no_such_module")), tmp_path, tmp_path / "none") == 0
    assert "not installed: no_such_module" in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_a_piece_is_stopped_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless.py").write_text("import time\nprint('| a |\\n| --- |', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(on_device, "ROOT", tmp_path)
    started = time.monotonic()
    assert run_piece(Piece("endless", "endless", 0.05), tmp_path, tmp_path / "R.md") == on_device.TOO_LONG
    assert time.monotonic() - started < 100
    assert "stopped after 0.05 minutes" in (tmp_path / "R.md").read_text()
    assert "| a |\n| --- |" in (tmp_path / "R.md").read_text()
