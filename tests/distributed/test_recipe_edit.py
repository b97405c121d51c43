"""A field changed in a recipe's text: every other character stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distributed.errors import RunError
from distributed.recipe_edit import overridden, set_field
from distributed.recipe_file import check_recipe, load_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

TEXT = """# n_experts: 7 in a comment
model:
  d_model: 36        # the width
  feed_forward: {kind: sigma_moe, n_experts: 7, top_k: 3}  # n_experts: 7
  feed_forward_at:
    1: {kind: peer, n_keys: 6}
  attention:
    kind: dense
    n_heads: 2
train: {}
other: {n_experts: 7}
"""


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("model.feed_forward.n_experts", "sigma_moe, n_experts: 7", "sigma_moe, n_experts: 123"),
        ("model.d_model", "d_model: 36", "d_model: 123"),
        ("model.feed_forward_at.1.n_keys", "n_keys: 6", "n_keys: 123"),
        ("model.feed_forward.d_expert", "top_k: 3", "top_k: 3, d_expert: 123"),
        ("model.attention.d_head", "    kind: dense", "    d_head: 123\n    kind: dense"),
        ("train.steps", "train: {}", "train: {steps: 123}"),
        ("seed", "model:", "seed: 123\nmodel:"),
    ],
)
def test_only_the_field_changes(field: str, before: str, after: str) -> None:
    changed = set_field(TEXT, field, 123)
    assert changed == TEXT.replace(before, after, 1)
    values, expected = yaml.safe_load(changed), yaml.safe_load(TEXT)
    place = expected
    *parents, last = field.split(".")
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = 123
    assert values == expected


def test_a_field_may_be_a_name() -> None:
    assert (
        set_field("name: small  # as in the paper\nseed: 1\n", "name", "small_matched")
        == "name: small_matched  # as in the paper\nseed: 1\n"
    )


def test_a_group_that_is_not_written_is_named() -> None:
    with pytest.raises(RunError, match=r"leaves model.depth at its default; write it out to have model.depth.repeats changed"):
        set_field(TEXT, "model.depth.repeats", 2)


def test_a_group_in_lines_is_replaced_up_to_the_next_field() -> None:
    changed = set_field(TEXT, "model.attention", "{kind: momha}")
    assert yaml.safe_load(changed) == {**yaml.safe_load(TEXT), "model": {**yaml.safe_load(TEXT)["model"], "attention": {"kind": "momha"}}}


def test_overrides_are_written_where_the_text_can_say_them(tmp_path: Path) -> None:
    path, part = tmp_path / "recipe.yaml", tmp_path / "tokenizer.yaml"
    path.write_text((CONFIGS / "quickstart.yaml").read_text())
    part.write_text("{kind: byte_bpe, vocab_size: 4096, train_megabytes: 4}")
    group = "model.depth={group: 1, repeats: 3}"
    changed = overridden(path, [group, "train.steps=7"])
    assert check_recipe(yaml.safe_load(changed), "changed") == load_recipe(path, [group, "train.steps=7"])
    assert overridden(path, []) == path.read_text()
    with pytest.raises(RunError, match=r"override 'data\.tokenizer=@.*' cannot be written into .*recipe\.yaml; change the field in a file"):
        overridden(path, [f"data.tokenizer=@{part}"])
