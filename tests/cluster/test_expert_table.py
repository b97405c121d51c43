"""`eval --experts`: a row a visit, one for all visits of a layer, and only the columns that say something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.cli import main
from distributed import evaluate
from distributed.run_folder import RunFolder

EVEN = {"candidates": 1024, "dead": 3, "usage": 0.997, "unevenness": 0.25, "imbalance": 1.5, "gate_usage": None, "gate_unevenness": None}


def figures(**changes: Any) -> dict[str, Any]:
    row = {**EVEN, **changes}
    visits = [{"visit": visit, "layer": visit % 2, **row, "overlap": 0.5 if visit > 1 else None} for visit in range(4)]
    return {"tokens": 12_345, "visits": visits, "layers": [{"layer": layer, **row, "path_diversity": 1.75} for layer in (0, 1)]}


def shown(
    use: dict[str, Any], make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> list[str]:
    make_run("a", "finished")
    total = {"nats": 2.0, "perplexity": 7.389, "tokens": 12_345, "windows": 7}
    answer = {"run": "a", "step": 3, "protocol": "tail", "repeats": 2, "sources": {"text": total}, "total": total, "experts": use}
    patch.setattr(evaluate, "evaluate_run", lambda *arguments: [answer] if arguments[6] else pytest.fail("not asked for"))
    assert main(["eval", "a", "--experts"]) == 0
    return capsys.readouterr().out.splitlines()


def test_rows_by_layer(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(figures(), make_run, capsys, monkeypatch)
    first = next(number for number, line in enumerate(lines) if "12,345 tokens" in line)
    assert lines[first + 1].split() == ["layer", "visit", "of", "dead", "used", "uneven", "top", "overlap", "paths"]
    rows = [line.split() for line in lines[first + 2 : first + 8]]
    assert [row[:2] for row in rows] == [["0", "0"], ["0", "2"], ["0", "all"], ["1", "1"], ["1", "3"], ["1", "all"]]
    assert rows[1][2:] == ["1,024", "3", "99.7%", "0.250", "1.50", "0.500"] and rows[2][-1] == "1.75"


def test_gates_where_there_are_any(
    make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(figures(gate_usage=0.5, gate_unevenness=1.0), make_run, capsys, monkeypatch)
    assert any(line.split()[7:9] == ["g-used", "g-uneven"] for line in lines)
    assert any(line.split()[7:9] == ["50.0%", "1.000"] for line in lines)
