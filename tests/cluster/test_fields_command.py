"""`fields` and `show` as a user calls them, and the page that `fields` makes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cluster.cli import main
from cluster.commands.fields import show_group
from cluster.recipes import CODE_ROOT
from distributed.recipe_fields import groups_below
from distributed.recipe_file import load_recipe


def test_a_pipe_gets_a_line_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "model.halting"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  model.halting: none | stick_breaking | act, default none. Whether a token may leave")
    kinds = [f"model.halting.kind={kind}" for kind in ("none", "stick_breaking", "act")]
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == ["model", *kinds]
    assert any(line.startswith("  model.halting.epsilon: number > 0, < 1, default 0.01. A token halts") for line in lines)


def test_a_terminal_gets_a_table() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, markup=False)
    for group in groups_below("train.lr"):
        show_group(group, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "train" and lines[2].split() == ["field", "type", "default", "meaning"]
    assert lines[3].split() == ["lr", "number", ">", "0", "0.00025", "The", "highest", "learning", "rate."]


def test_an_unknown_prefix_is_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "train.lrr"]) == 2
    shown = capsys.readouterr()
    assert not shown.out and "a recipe has no field 'train.lrr'" in shown.err and "did you mean train.lr" in shown.err


def test_the_page_of_fields_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "--markdown"]) == 0
    page = (CODE_ROOT / "docs" / "recipe.md").read_text()
    assert capsys.readouterr().out == page, "run ./launch.sh fields --markdown > docs/recipe.md"


def test_show_prints_a_recipe_with_its_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "paper/moeut_44m", "train.lr=1e-3"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "shown.yaml").write_text(text)
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe(CODE_ROOT / "configs/paper/moeut_44m.yaml", ["train.lr=1e-3"])
    assert "  lr: 0.001\n" in text and "  max_failures_an_hour: 5\n" in text
