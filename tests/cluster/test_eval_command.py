"""`eval` as a user calls it: a row a source, and where several numbers of repeats are asked for, a row each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.cli import main
from distributed import evaluate
from distributed.run_folder import RunFolder


def figures(repeats: int, sources: tuple[str, ...] = ("text",)) -> dict[str, Any]:
    """A loss that tells which repeats it is of."""
    total = {"nats": float(repeats), "perplexity": 10.0 * repeats, "tokens": 12_345, "windows": 7}
    return {"run": "a", "step": 3, "protocol": "tail", "repeats": repeats, "sources": dict.fromkeys(sources, total), "total": total}


@pytest.mark.parametrize(
    ("words", "asked", "rows"),
    [
        ([], [], [["text", "4.0000", "40.00"]]),
        (["--repeats", "2"], [2], [["text", "2.0000", "20.00"]]),
        (["--repeats", "1,2,8"], [1, 2, 8], [["1", "text", "1.0000", "10.00"], ["2", "text", "2.0000"], ["8", "text", "8.0000", "80.00"]]),
    ],
)
def test_a_row_a_number_of_repeats(
    words: list[str],
    asked: list[int],
    rows: list[list[str]],
    make_run: Callable[..., RunFolder],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_run("a", "finished")
    seen: list[list[int]] = []

    def evaluated(*arguments: Any) -> list[dict[str, Any]]:
        seen.append(arguments[5])
        return [figures(repeats) for repeats in arguments[5] or [4]]

    monkeypatch.setattr(evaluate, "evaluate_run", evaluated)
    assert main(["eval", "a", *words]) == 0
    first, head, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert seen == [asked]
    assert first[-len(rows) - 1 :] == ["repeats", *(f"{number}," for number in asked[:-1]), str((asked or [4])[-1])]
    assert head[0] == ("repeats" if len(rows) > 1 else "source")
    assert [line[: len(row)] for line, row in zip(lines, rows, strict=True)] == rows
