"""The report of a comparison, from figures made by hand: tables, orderings, curves and plots."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_comparison import two_recipes, write_recipe

from cluster.cli import main
from cluster.comparison.curves import Band, figure_at, over_figure, over_steps, read_curves
from cluster.comparison.entries import Comparison, Entry, read_comparison
from cluster.comparison.machine import describe_machine, machine_words
from cluster.comparison.orderings import PUBLISHED, Finding
from cluster.comparison.piece import MACHINE_FILE
from cluster.comparison.report import Report
from cluster.comparison.results import gather
from cluster.comparison.svg import line_plot, tick_text
from cluster.recipes import CODE_ROOT
from distributed.run_folder import RunFolder
from distributed.summary import read_summary, run_lines

LINES = [
    {"step": 1, "loss": 5.0, "interval_steps": 1, "step_seconds": 2.0, "flops": 20.0},
    {"step": 2, "held_out": {"a": 4.0, "b": 5.0}},
    {"step": 3, "loss": None, "interval_steps": 2, "step_seconds": 1.0, "flops": 8.0},
    {"step": 3, "held_out": {"a": None, "b": 5.0}},
]
MACHINE = {"date": "2026-01-02", "processor": "Abacus", "cores": 2, "device": "CPU", "threads": 1, "runs_at_once": 2}
VERSIONS = {"python": "3.12.1", "torch": "2.14.1"}
WINDOWS = {"words": {"scored": 8, "held_out": 30}}


def finish(entry: Entry, nats: float | None, load: dict[str, float] | None = None, use: dict[str, Any] | None = None) -> None:
    """A run as its trainer would have left it: held-out losses nats + 1 at step 6 and nats at step 12; None: diverged."""
    entry.run.create(entry.recipe)
    for step, loss in ((6, None if nats is None else nats + 1.0), (12, nats)):
        entry.run.append_metrics({"step": step, "held_out": {"words": loss}})
        entry.run.append_metrics({"step": step, "loss": loss, "interval_steps": 6, "step_seconds": 0.5, "flops": 6e6})
    summary = {
        "corpus": "0123456789abcdef",
        "losses": {"held_out": nats, "below_unigram": None if nats is None else 5.0 - nats, "windows": WINDOWS},
        "speed": {"tokens_per_second": 1234.0},
        "memory": {"host_bytes_max": 3 * 2**20, "device_bytes_max": 0},
        "load": load or {},
        "use": use or {},
    }
    entry.run.summary_path.write_text(json.dumps(summary))
    (entry.run.path / MACHINE_FILE).write_text(json.dumps(MACHINE | VERSIONS | {"mootron": "7.8.9"}))
    entry.run.write_state("finished", step=12)


@pytest.fixture
def comparison(home: Path) -> Comparison:
    """Two seeds of two recipes: MoEUT perplexities e^2 and e^2.2, the dense peer's first e^3, its second failed."""
    made = read_comparison(two_recipes(home), 2)
    moeut_1, dense_1, moeut_2, dense_2 = made.entries
    load = {"dead_share": 0.25, "never_used_share": 0.0, "routing_entropy": 0.9, "unevenness": 0.125, "expert_imbalance": 1.5}
    use = {"overlap": 0.5, "overlap_by_visit": {"1": 0.5}, "path_diversity": 2.0}
    finish(moeut_1, 2.0, load, use)
    finish(moeut_2, 2.2, load, use)
    finish(dense_1, 3.0, use={"gate_usage": 0.875, "gate_unevenness": 0.25})
    dense_2.run.create(dense_2.recipe)
    dense_2.run.write_state("failed", step=3, reason="RunError: a | b")
    return made


def rows_of(markdown: str, title: str) -> dict[str, list[str]]:
    """The cells of a table of the report, by its first column."""
    part = markdown.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def test_markdown_has_the_figures(comparison: Comparison, home: Path) -> None:
    Report("demo", "./launch.sh compare demo", "params", gather(comparison)).write(home)
    text = (home / "report.md").read_text()
    outcome = rows_of(text, "Outcome")
    low, high = math.exp(2.0), math.exp(2.2)
    mean, deviation = (low + high) / 2, (high - low) / math.sqrt(2)
    assert list(outcome) == ["moeut", "dense"], "the best first"
    assert outcome["moeut"][:4] == [f"{mean:.2f}", f"{deviation:.2f}", f"{low:.2f}, {high:.2f}", "2.1000"]
    assert outcome["moeut"][4:] == ["-1.0000", "2.900", "0.01", "1,234", "3 MiB"], "beside dense with the seed that both have"
    assert outcome["dense"][:5] == [f"{math.exp(3.0):.2f}", "-", f"{math.exp(3.0):.2f}", "3.0000", "-"]
    assert "the same held-out text (first 8 of 30 windows), which the unigram model is scored over too" in text
    costs = {result.label: result.cost for result in gather(comparison)}
    sizes = rows_of(text, "Sizes")
    assert sizes["dense"][0] == f"{costs['dense'].parameters:,}" and sizes["dense"][1] == sizes["dense"][4] == "+0.0%"
    assert sizes["moeut"][4] == f"{costs['moeut'].macs_per_token / costs['dense'].macs_per_token - 1:+.1%}" != "+0.0%"
    low, high = (
        f"{costs[label].macs_per_token / 1e6:.2f} M ({label})" for label in sorted(costs, key=lambda label: costs[label].macs_per_token)
    )
    assert f"Multiply-accumulates a token go from {low} to {high}." in text
    assert rows_of(text, "Expert use") == {
        "moeut": ["0.250", "0.000", "0.900", "0.125", "1.500", "0.500", "2.000", "-", "-"],
        "dense": [*["-"] * 7, "0.875", "0.250"],
    }
    assert rows_of(text, "Orderings of the papers")["moeut"][2:] == ["+1.0000", "1 of 1 seeds agree"]
    assert "| --- | --- | --- | ---: | --- |" in text, "words to the left, figures to the right"
    assert rows_of(text, "Not finished") == {"dense": ["2", "failed: RunError: a \\| b"]}
    for words in ("`./launch.sh compare demo`", "Abacus, 2 cores, 2 runs at once", "12 steps of 8 windows, 1,536 tokens"):
        assert words in text
    assert "Mootron 7.8.9, Python 3.12.1, torch 2.14.1" in text and "- Corpus: digest of its manifest 0123456789ab\n" in text
    assert "- Learning rate: 0.01 for all recipes, not tuned recipe by recipe\n" in text
    assert "Seeds: 1, 2" in text and str(home) not in text


def test_a_run_that_diverged_stands_last_and_decides_nothing(comparison: Comparison, home: Path) -> None:
    moeut_1, _, moeut_2, dense_2 = comparison.entries
    for entry in (moeut_1, moeut_2):
        entry.run.metrics_path.unlink()
        finish(entry, None)
    finish(dense_2, 3.2)
    text = written(comparison, home)
    assert list(rows_of(text, "Outcome")) == ["dense", "moeut"]
    assert rows_of(text, "Outcome")["moeut"][:4] == ["diverged", "-", "diverged, diverged", "-"]
    assert "Orderings of the papers" not in text
    finish(moeut_2, 2.2)
    text = written(comparison, home)
    assert rows_of(text, "Outcome")["moeut"][:3] == [f"{math.exp(2.2):.2f}", "-", f"diverged, {math.exp(2.2):.2f}"]
    assert rows_of(text, "Orderings of the papers")["moeut"][2:] == ["+1.0000", "1 of 1 seeds agree"]


def test_differences_are_those_of_one_seed(comparison: Comparison, home: Path) -> None:
    finish(comparison.entries[3], 3.4)
    text = written(comparison, home)
    assert rows_of(text, "Outcome")["moeut"][4] == f"-1.1000 ± {0.2 / math.sqrt(2):.4f}"
    assert rows_of(text, "Orderings of the papers")["moeut"][2:] == ["+1.1000", "2 of 2 seeds agree"]
    assert "2 seeds have equal signs by chance 50% of the time" in text


def test_without_dense_the_first_recipe_is_the_reference(home: Path) -> None:
    words = [str(write_recipe(home, "small")), str(write_recipe(home, "slow", train={"lr": 0.5}))]
    made = read_comparison(words, 1)
    for entry, nats in zip(made.entries, (2.5, 2.0), strict=True):
        finish(entry, nats)
    text = written(made, home)
    assert "| nats beside small |" in text and "| beside small |" in text
    assert (rows_of(text, "Outcome")["small"][4], rows_of(text, "Outcome")["slow"][4]) == ("-", "-0.5000")
    assert "- Learning rate: each recipe has its own (column lr)\n" in text


def test_a_run_goes_on_from_a_version_that_did_not_note_its_own(comparison: Comparison, home: Path) -> None:
    (comparison.entries[0].run.path / MACHINE_FILE).write_text(json.dumps(MACHINE | VERSIONS))
    text = written(comparison, home)
    assert "each; Python 3.12.1, torch 2.14.1; 2026" in text and "each; Mootron 7.8.9, Python 3.12.1" in text


def test_what_a_run_is_trained_on_names_this_version() -> None:
    version = tomllib.loads((CODE_ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"; Mootron {version}, Python 3" in machine_words(describe_machine(1))


def without_flops(run: RunFolder) -> None:
    lines = [{name: value for name, value in line.items() if name != "flops"} for line in run_lines(run)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def without_windows(run: RunFolder) -> None:
    summary = read_summary(run)
    del summary["losses"]["windows"]
    run.summary_path.write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("forget", "missing"),
    [(without_flops, "the multiply-accumulates of its steps"), (without_windows, "which held-out windows its baselines were scored over")],
)
def test_a_run_of_an_older_version_is_named_before_anything_begins(
    forget: Callable[[RunFolder], None], missing: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = two_recipes(home)
    old, other = read_comparison(words, 1).entries
    finish(old, 2.0)
    forget(old.run)
    assert main(["compare", *words, "--seeds", "1", "--local", "--unmatched"]) == 2
    told = capsys.readouterr().err
    assert f"run compare-set/moeut-s1 was trained by an older version, which did not note {missing}; train it again: " in told
    assert f"choose another --name, or remove {old.run.path}" in told and not other.run.path.exists()


def written(comparison: Comparison, home: Path) -> str:
    Report("demo", "compare", "params", gather(comparison)).write(home)
    return (home / "report.md").read_text()


ONE_LAYER = {"group": 1, "repeats": 4}


@pytest.mark.parametrize(
    "model",
    [
        {"depth": ONE_LAYER, "halting": {"kind": "act"}},
        {"depth": ONE_LAYER | {"sample": {"kind": "uniform", "max": 6}}},
    ],
)
def test_what_sizes_leave_out_and_seeds_vary_is_said(model: dict[str, Any], home: Path) -> None:
    words = two_recipes(home)
    text = written(read_comparison(words, 1), home)
    assert "as if no token halted" not in text and "initial weights, dropout and sample order" in text
    text = written(read_comparison([str(write_recipe(home, "moving", model)), "data.order=streams"], 1), home)
    assert "those of depth.repeats repeats, as if no token halted" in text
    assert "Seeds: 1 (initial weights and dropout; streams have one sample order; equal over the recipes)" in text


def test_page_is_whole_and_fetches_nothing(comparison: Comparison, home: Path) -> None:
    Report("a <b>", "compare", None, gather(comparison)).write(home)
    page = (home / "report.html").read_text()
    assert page.count("<svg") == 4 and "Not matched" in page and "a &lt;b&gt;" in page
    for fetched in ("<script", "src=", "href=", "@import", "url("):
        assert fetched not in page
    assert "(<code>./launch.sh eval RUN --experts</code> is exact)" in page
    over_tokens = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert {node.text for node in over_tokens.iter() if node.tag.endswith("text")} >= {"moeut 2.1", "dense 3", "tokens", "nats a token"}


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ([0.1, 0.2, 0.3], "3 of 3 seeds agree"),
        ([-0.1, -0.2], "2 of 2 seeds disagree"),
        ([0.3, -0.1, 0.2], "seeds differ (2 of 3 agree)"),
        ([0.0], "seeds differ (0 of 1 agree)"),
    ],
)
def test_seeds_are_counted(gaps: list[float], words: str) -> None:
    assert Finding(PUBLISHED[0], gaps).verdict == words


def test_curves_of_a_run() -> None:
    curves = read_curves(LINES)
    assert curves.held_out == {2: 4.5} and curves.train == {1: 5.0}
    assert curves.seconds == {0: 0.0, 1: 2.0, 3: 4.0}
    assert curves.macs == {0: 0.0, 1: 10.0, 3: 14.0}
    assert [figure_at(curves.seconds, step) for step in (0, 1, 2, 3, 4)] == [0.0, 2.0, 3.0, 4.0, None]


def test_curves_over_seeds() -> None:
    first, second = {1: 4.0, 2: 3.0, 3: 2.0}, {1: 6.0, 2: 3.5}
    assert over_steps([first, second], 10.0) == Band([10.0, 20.0], [5.0, 3.25], [4.0, 3.0], [6.0, 3.5])
    clocks = [{0: 0.0, 2: 4.0}, {0: 0.0, 2: 8.0}]
    assert over_figure([first, second], clocks) == Band([3.0, 6.0], [5.0, 3.25], [4.0, 3.0], [6.0, 3.5])
    assert over_steps([], 10.0).x == []


@pytest.mark.parametrize("log_x", [False, True])
def test_plot_is_well_formed_and_inside_its_box(log_x: bool) -> None:
    curves = {"a & <b>": Band([1.0, 1e3, 1e9], [3.0, 2.0, 1.0], [2.5, 1.5, 0.5], [3.5, 2.5, 1.5]), "none": Band([], [], [], [])}
    curves |= {f"extra {number}": Band([5.0], [2.0], [2.0], [2.0]) for number in range(30)}
    root = ElementTree.fromstring(line_plot("t < u", "x", "y", curves, log_x))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    texts = [node for node in root.iter() if node.tag.endswith("text")]
    words = [node.text for node in texts]
    assert "a & <b> 1" in words and not any("none" in word for word in words) and "extra 29 2" in words, "with the last mean"
    assert all(0 <= float(node.attrib.get("y", 0)) <= height for node in texts)
    line = next(node for node in root.iter() if node.attrib.get("class") == "line")
    points = [tuple(map(float, point.split())) for point in line.attrib["d"][1:].split("L")]
    assert len(points) == 3 and all(0 < x < width and 0 < y < height for x, y in points)
    assert points[0][0] <= points[1][0] < points[2][0] and points[0][1] < points[1][1] < points[2][1], "up is more"
    if log_x:
        left, middle, right = (x for x, _ in points)
        assert (middle - left) / (right - left) == pytest.approx(1 / 3, abs=0.01), "three of nine decades"


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (7.0, 7.0), (6.75, 6.76), (1e-9, 3e12)])
def test_plot_of_any_range_has_ticks(low: float, high: float) -> None:
    root = ElementTree.fromstring(line_plot("t", "x", "y", {"a": Band([1.0, 2.0], [low, high], [low, high], [low, high])}))
    grid = [node for node in root.iter() if node.attrib.get("class") == "grid"]
    assert len([node for node in grid if node.attrib["y1"] == node.attrib["y2"]]) in range(2, 12)


def test_plot_without_a_point_says_so() -> None:
    assert "no figures yet" in line_plot("t", "x", "y", {"a": Band([], [], [], [])}, log_x=True)


def test_tick_words() -> None:
    assert [tick_text(value) for value in (0.0, 2.5, 250.0, 1500.0, 2e6, 3e9, 5e13)] == ["0", "2.5", "250", "1.5k", "2M", "3G", "50T"]
