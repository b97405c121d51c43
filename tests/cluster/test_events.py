"""What happened to a run, as file, as words and in `status` and the summary."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console
from test_print_summary import SUMMARY

from cluster.cli import main
from cluster.events import RunEvent, append_event, events_path, read_events, restarts, since_launch, words
from cluster.summary import print_summary
from distributed.run_folder import RunFolder

STORY = [
    RunEvent("launched"),
    RunEvent("started", world=3, expert_parallel=3),
    RunEvent("killed", rank=1, host="left", step=7, reason="rank 1 on left failed: killed by SIGKILL\nits log", world=3),
    RunEvent("started", world=2, expert_parallel=2),
    RunEvent("recovered", step=8, world=2, expert_parallel=2, seconds=4.5, parts={"start ranks": 3.0, "steps": 1.5}),
]


def told(run: RunFolder) -> RunFolder:
    for event in STORY:
        append_event(run, event)
    return run


def test_what_is_written_is_read_and_a_half_line_is_passed_over(make_run: Callable[..., RunFolder]) -> None:
    run = told(make_run("a"))
    with events_path(run).open("a") as file:
        file.write('{"kind": "kil')
    append_event(run, RunEvent("grows", reason="more"))
    assert read_events(run) == [*STORY, read_events(run)[-1]] and read_events(run)[-1].kind == "grows"
    assert restarts(read_events(run)) == 1
    append_event(run, RunEvent("launched"))
    append_event(run, RunEvent("started", world=2))
    assert [event.kind for event in since_launch(read_events(run))] == ["started"]
    assert restarts(read_events(run)) == 1, "a start that someone asked for is no restart"


def test_words_are_one_line() -> None:
    assert words(STORY[2]) == "killed: rank 1 on left at step 7: rank 1 on left failed: killed by SIGKILL"
    assert words(STORY[4]) == (
        "goes on at step 8 with 2 workers, expert parallelism 2, 4.5 s after the failure (start ranks 3.0, steps 1.5)"
    )


def test_status_and_summary_tell_of_it(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = told(make_run("a", "finished", step=20, steps=20))
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "restarts" in shown.splitlines()[0] and "a: goes on at step 8" in shown
    run.summary_path.write_text(json.dumps(SUMMARY))
    output = io.StringIO()
    print_summary(run, Console(file=output, width=100))
    assert "Restarts: 1" in output.getvalue() and "killed, rank 1 on left" in output.getvalue()
