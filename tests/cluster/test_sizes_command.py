"""`sizes` and `match` as a user calls them, on the recipes that come with the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.recipes import CONFIGS
from distributed.recipe_file import load_recipe
from distributed.world_rules import check_world
from model.accounting import macs_per_token, stored_parameters
from model.matching import dense_peer


def test_sizes_to_the_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sizes", "paper/moeut_244m", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    total = figures["parts"][-1]
    assert (figures["precision"], total["part"], total["stored"]) == ("bf16", "total", 243_326_784)
    assert round(figures["gmacs_a_window"]["published"], 3) == 162.338
    assert figures["kv_bytes_a_window"] == 1024 * total["kv_bytes"] == 18 * 2 * 4 * 128 * 1024 * 2


def test_sizes_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sizes", "paper/dense_244m", "train.precision=fp32"]) == 0
    out = capsys.readouterr().out
    assert "dense_244m: 243,568,700 parameters; windows of 1024 tokens, fp32" in out
    assert any(line.split()[:2] == ["feed-forward", "dense"] and "151.6M" in line for line in out.splitlines())
    assert "271.111 GMACs" in out


@pytest.mark.parametrize(
    ("by", "field", "changed"), [("params", None, "n_experts: 156"), ("macs", "model.feed_forward.d_expert", "d_expert: 165")]
)
def test_a_matched_recipe_differs_in_one_field_and_its_name(
    by: str, field: str | None, changed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, source = tmp_path / "matched.yaml", CONFIGS / "paper" / "moeut_44m.yaml"
    words = ["match", "paper/moeut_44m", "--to", "paper/dense_44m", "--by", by, "--out", str(out)]
    assert main([*words, "--field", field] if field else words) == 0
    remark, *lines = out.read_text().splitlines()
    differing = [line for line, before in zip(lines, source.read_text().splitlines(), strict=True) if line != before]
    assert len(differing) == 2 and differing[0] == "name: moeut_44m_matched" and changed in differing[1]
    assert remark.startswith("# moeut_44m.yaml with model.feed_forward.") and f"dense_44m.yaml by {by}" in remark
    assert load_recipe(out).train == load_recipe(source).train
    shown = capsys.readouterr()
    assert not shown.out and "dense_44m.yaml: " in shown.err and "%" in shown.err


def test_without_out_the_recipe_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", "paper/moeut_244m", "--to", "paper/dense_244m", "--by", "params"]) == 0
    shown = capsys.readouterr()
    source = (CONFIGS / "paper" / "moeut_244m.yaml").read_text()
    assert shown.out.split("\n", 1)[1] == source.replace("name: moeut_244m", "name: moeut_244m_matched")
    assert "243,326,784 (-241,916, -0.0993%)" in shown.err


@pytest.mark.parametrize(("name", "by"), [("paper/moeut_44m", "params"), ("quickstart", "macs"), ("compare/small/sut", "params")])
def test_without_another_recipe_the_dense_peer_is_made(name: str, by: str, tmp_path: Path) -> None:
    """Every visit has a layer of its own; data and training stay, and no experts are left to partition."""
    out, source = tmp_path / "dense.yaml", load_recipe(CONFIGS / f"{name}.yaml", ["model.dropout=0.125"])
    assert main(["match", name, "model.dropout=0.125", "--by", by, "--out", str(out)]) == 0
    made = load_recipe(out)
    assert (made.name, made.data, made.train) == (f"{source.name}_dense", source.data, source.train)
    assert made.model == dense_peer(source.model).model_copy(update={"feed_forward": made.model.feed_forward})
    assert (made.model.depth.group, made.model.depth.repeats, made.model.dropout) == (source.model.depth.n_visits, 1, 0.125)
    sizes = [stored_parameters(one.model) if by == "params" else macs_per_token(one.model, one.data.seq_len) for one in (made, source)]
    assert sizes[0] == pytest.approx(sizes[1], rel=5e-3)
    check_world(made, 1)


def test_overrides_are_matched_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, source = tmp_path / "matched.yaml", CONFIGS / "paper" / "moeut_44m.yaml"
    overrides = ["model.feed_forward.top_k=4", "train.lr=3e-4", "model.depth={group: 2, repeats: 4}"]
    words = ["match", "paper/moeut_44m", "--to", "paper/dense_44m", "--by", "params", "--out", str(out), *overrides]
    assert main(words) == 0
    made, expected = load_recipe(out), load_recipe(source, overrides)
    number = made.model.feed_forward.n_experts  # type: ignore[union-attr]
    matched = expected.model.feed_forward.model_copy(update={"n_experts": number})
    wanted = expected.model_copy(update={"name": "moeut_44m_matched", "model": expected.model.model_copy(update={"feed_forward": matched})})
    assert made == wanted
    assert f"moeut_44m.yaml with {' '.join(overrides)} model.feed_forward.n_experts={number}: " in capsys.readouterr().err
    before = out.read_text()
    assert main([*words, "train.lr=1e-3"]) == 2
    assert f"--out {out} is there already" in capsys.readouterr().err and out.read_text() == before
    assert main([*words, "train.lr=1e-3", "--force"]) == 0
    assert load_recipe(out).train.lr == 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "params", "model.d_modle=8"], "model.d_modle: unknown field; did you mean d_model?"),
        (["--by", "params", "cluster.workers=2"], "the recipe leaves cluster at its default; write it out"),
        (["--by", "params", "data.tokenizer=@nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["--by", "params", "--field", "model.feed_forward.top_k"], "model.feed_forward.top_k leaves it at"),
        (["--by", "params", "--field", "model.norm"], "name a field that is a whole number"),
        (["--by", "params", "--field", "model.vocab_size"], "make them equal"),
        (["--by", "params", "--out", "/nowhere/at/all.yaml"], "--out /nowhere/at/all.yaml"),
        (["--by", "bytes"], "invalid choice"),
    ],
)
def test_what_cannot_be_matched(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", "quickstart", "--to", "paper/dense_44m", *words]) == 2
    assert message in capsys.readouterr().err
