"""Recipes as a user names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.recipes import CONFIGS, find_recipe, read_recipe, split_words
from distributed.errors import RunError


def test_words_divide_into_recipe_and_overrides() -> None:
    assert split_words(["train.lr=1", "small", "name=x"]) == ("small", ["train.lr=1", "name=x"])
    assert split_words([]) == ("quickstart", [])


def test_a_path_from_where_the_user_stands_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml") == CONFIGS / "quickstart.yaml"
    (tmp_path / "quickstart.yaml").write_text("")
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")


def test_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(RunError, match="quickstart"):
        find_recipe("nothing-like-it")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("moeut_44", "did you mean 'paper/moeut_44m'?"),
        ("paper/moeut_44", "did you mean 'paper/moeut_44m'?"),
        ("compare/smal/sut", "did you mean 'compare/small/sut'?"),
        ("peers.yaml", "did you mean 'compare/gpu/peer' or 'compare/small/peer'?"),
    ],
)
def test_a_near_name_is_suggested(name: str, hint: str) -> None:
    with pytest.raises(RunError, match=re.escape(hint)):
        find_recipe(name)


def test_overrides_reach_the_recipe() -> None:
    recipe = read_recipe(["train.lr=3e-4", "data.loader_workers=0"], name="other")
    assert (recipe.train.lr, recipe.data.loader_workers, recipe.name) == (3e-4, 0, "other")
