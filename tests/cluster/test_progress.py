"""The figures of a run as they come."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from cluster.metrics_tail import MetricsTail
from cluster.progress import LiveLine, PlainLines, duration, follow, words
from data_pipeline.files import write_text
from distributed.run_folder import RunFolder

FIGURES = {"step": 5, "loss": 2.5, "tokens_per_second": 1234.5, "step_seconds": 2.0}


def test_tail_gives_only_new_whole_lines(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    run.append_metrics({"step": 1})
    tail = MetricsTail(run.metrics_path)
    assert tail.read() == []
    run.append_metrics({"step": 2})
    with run.metrics_path.open("a") as file:
        file.write('{"step":')
    assert tail.read() == [{"step": 2}]
    with run.metrics_path.open("a") as file:
        file.write(' 3}\n{"step": 4}\n')
    assert tail.read() == [{"step": 3}, {"step": 4}]


def test_tail_follows_a_file_that_was_replaced(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    tail = MetricsTail(run.metrics_path)
    run.append_metrics({"step": 1})
    run.append_metrics({"step": 2})
    assert [figures["step"] for figures in tail.read()] == [1, 2]
    write_text(run.metrics_path, '{"step": 1}\n')
    assert tail.read() == []
    run.append_metrics({"step": 2})
    assert tail.read() == [{"step": 2}]


def test_plain_lines_show_the_first_and_the_last(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    console = Console(file=io.StringIO(), width=120)
    turns = iter([True, True, False])

    def alive() -> bool:
        for step in (5, 6, 7):
            run.append_metrics({**FIGURES, "step": step})
        run.append_metrics({"step": 7, "held_out": {"python": 3.25}})
        return next(turns)

    follow(run, 20, alive, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "step 5/20  loss 2.5000  1,234 tokens/s  2.00 s/step  0:30 left"
    assert lines[1] == "step 7  held-out loss: python 3.2500"
    assert lines[-1].startswith("step 7/20  ")


@pytest.mark.parametrize("loss", [2.5, None])
def test_live_line(loss: float | None) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with LiveLine(20, console) as line:
        line.figures({**FIGURES, "loss": loss})
        line.bar.refresh()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "5/20" in shown and ("loss 2.5000" if loss else "loss not finite") in shown and "0:30 left" in shown


def test_plain_lines_survive_a_loss_that_is_not_finite() -> None:
    console = Console(file=io.StringIO(), width=120)
    with PlainLines(20, console) as lines:
        lines.figures({**FIGURES, "loss": None})
    assert "loss not finite" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("depth", "shown"),
    [
        ({"repeats": None, "halting": {}}, "loss 2.5000  1,234 tokens/s"),
        ({"repeats": 3.25, "halting": {}}, "loss 2.5000  3.2 repeats  1,234 tokens/s"),
        ({"halting": {"mean_passes": 2.5, "saved_share": 0.31, "loss": 1.0}}, "loss 2.5000  2.50 passes, 31% saved  1,234 tokens/s"),
    ],
)
def test_depth_is_told_where_it_is_not_fixed(depth: dict[str, object], shown: str) -> None:
    assert words({**FIGURES, **depth}, 20).startswith(shown)


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (309, "5:09"), (3909, "1:05:09"), (-3, "0:00")])
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
