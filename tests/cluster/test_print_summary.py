"""The summary page, rendered without a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.summary import print_summary, verdict
from distributed.errors import RunError
from distributed.run_folder import RunFolder

SUMMARY: dict[str, Any] = {
    "run": "quickstart",
    "state": "finished",
    "step": 200,
    "steps": 200,
    "world": 2,
    "expert_parallel": 2,
    "parameters": 6_123_456,
    "tokens_seen": 819_200,
    "losses": {
        "train": 4.2,
        "held_out": 4.5,
        "held_out_perplexity": 90.0,
        "by_source": {"python": 4.5},
        "windows": {"python": {"scored": 128, "held_out": 499}},
        "unigram": 6.5,
        "bigram": 4.125,
        "below_unigram": 2.0,
        "above_bigram": 0.375,
    },
    "speed": {"tokens_per_second": 4321.0, "step_seconds": 0.95, "model_flop_use": 0.213},
    "depth": {},
    "parts": {"forward": 0.25, "experts": 0.5, "backward": 0.25, "checkpoint": 0.0},
    "load": {
        "dead_share": 0.125,
        "never_used_share": 0.0,
        "routing_entropy": 0.91,
        "expert_imbalance": 3.5,
        "rank_imbalance": 1.25,
    },
    "memory": {"host_bytes_max": 2**30, "device_bytes_max": 0},
    "goodput": {"wall": 400.0, "productive": 300.0, "goodput": 0.75, "lost": {"set_up": 60.0, "lost_steps": 40.0, "data": 0.0}},
    "checkpoint": "step-00000200",
}


def render(folder: Path, width: int = 100, **changes: Any) -> str:
    """What a pipe would get of the page of SUMMARY with `changes`."""
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    output = io.StringIO()
    print_summary(RunFolder(folder), Console(file=output, width=width))
    return output.getvalue()


def test_the_gaps_are_plain_to_see(tmp_path: Path) -> None:
    text = render(tmp_path)
    assert "2.000 nats below the unigram model, 0.375 nats above the bigram model" in text
    assert "-2.000" in text
    assert "+0.375" in text


def test_a_page_for_a_pipe_has_no_colour_codes(tmp_path: Path) -> None:
    assert "\x1b" not in render(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "Run quickstart finished at step 200 of 200",
        "Loss (held-out: first 128 of 499 windows)",
        "6,123,456 parameters, 2 workers",
        "4,321",
        "21.3%",
        "goodput 75.0%",
        "lost steps",
        "12.5%",
        "step-00000200",
        "./launch.sh tensorboard",
        "./launch.sh eval quickstart",
        "./launch.sh resume quickstart train.steps=400",
    ],
)
def test_what_the_page_says(tmp_path: Path, words: str) -> None:
    assert words in render(tmp_path)


def test_parts_are_listed_by_size_and_add_up(tmp_path: Path) -> None:
    text = render(tmp_path)
    assert text.index("experts ") < text.index("forward ") < text.index("backward ")
    assert "checkpoint  " not in text.split("Wall time")[0]
    assert "1.000" in text


def test_a_stopped_run_says_how_to_resume(tmp_path: Path) -> None:
    lines = render(tmp_path, state="stopped", step=120).splitlines()
    assert any("resume" in line and "./launch.sh resume quickstart" in line and "train.steps" not in line for line in lines)


def test_a_run_without_experts_or_figures_still_has_a_page(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("train", "held_out", "held_out_perplexity", "unigram", "bigram", "below_unigram", "above_bigram"))
    text = render(
        tmp_path,
        losses={**nothing, "by_source": {}, "windows": SUMMARY["losses"]["windows"]},
        speed=dict.fromkeys(SUMMARY["speed"]),
        parts={},
        load={},
        memory=dict.fromkeys(SUMMARY["memory"]),
        goodput={"wall": 0.0, "productive": 0.0, "goodput": 0.0, "lost": {}},
    )
    assert "No held-out loss yet." in text
    assert "Expert load" not in text


def test_depth_is_shown_where_it_is_not_fixed(tmp_path: Path) -> None:
    assert "Depth" not in render(tmp_path)
    rows = [
        line.split("│")[1:3] for line in render(tmp_path, depth={"repeats": 3.256, "mean_passes": 2.5, "saved_share": 0.25}).splitlines()
    ]
    shown = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    assert shown["repeats drawn a step"] == "3.26"
    assert shown["passes a token took"] == "2.50" and shown["multiply-accumulates saved by halting"] == "25.0%"


def test_worse_than_unigram_is_said_loudly() -> None:
    assert verdict({"below_unigram": -0.5, "above_bigram": 3.0}).plain.startswith("0.500 nats ABOVE the unigram model")


def test_better_than_bigram_is_said() -> None:
    assert verdict({"below_unigram": 3.0, "above_bigram": -0.25}).plain.endswith("0.250 nats below the bigram model")


def test_sources_are_listed_when_there_are_several(tmp_path: Path) -> None:
    losses = {**SUMMARY["losses"], "by_source": {"python": 4.0, "text": 5.0}}
    assert "text" in render(tmp_path, losses=losses)


def test_without_a_summary_the_error_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no summary yet"):
        print_summary(RunFolder(tmp_path), Console(file=io.StringIO()))
