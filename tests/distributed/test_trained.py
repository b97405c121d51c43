"""A prepared set and a checkpoint on disk, evaluated and continued: what `eval` and `generate` do."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from metrics_work import lone

from data_pipeline.prepare import prepare
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.windows import Windows
from distributed import evaluate, trained
from distributed.build import build_model
from distributed.checkpoint import Meta, save
from distributed.engine_plain import PlainEngine
from distributed.errors import RunError
from distributed.evaluate import evaluate_run
from distributed.generate import generate_text
from distributed.held_out import Scoring, held_out_loss
from distributed.recipe import Recipe
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder, data_folder
from distributed.trained import load_trained
from model.config import ModelConfig
from model.dense_config import DenseFeedForwardConfig
from model.errors import ModelError
from model.moeut import MoEUT

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def write_documents(folder: Path, words: str) -> None:
    """Small documents that differ, so that none is dropped as a duplicate."""
    folder.mkdir(parents=True)
    for number in range(60):
        lines = (f"{words} {number} {line} {number * line % 7}" for line in range(12))
        (folder / f"{number}.txt").write_text("\n".join(lines))


def recipe_for(folder: Path) -> Recipe:
    sources = [{"name": name, "kind": "text", "path": str(folder / name)} for name in ("seas", "hills")]
    return check_recipe(
        {
            "name": "small",
            "model": {
                "vocab_size": 300,
                "d_model": 16,
                "depth": {"group": 1, "repeats": 2},
                "attention": {"kind": "switchhead", "n_heads": 2, "d_head": 8, "n_experts": 3},
                "feed_forward": {"kind": "sigma_moe", "n_experts": 5, "d_expert": 8, "top_k": 2},
            },
            "data": {
                "folder": str(folder / "set"),
                "sources": sources,
                "tokenizer": {"vocab_size": 300},
                "seq_len": 32,
                "held_out_fraction": 0.2,
                "deduplicate": False,
            },
            "train": {"steps": 2, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
        },
        "test",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two sources with checkpoints at steps 1 and 2, of different weights."""
    pytest.importorskip("streaming")
    folder = tmp_path_factory.mktemp("trained")
    write_documents(folder / "seas", "the sea is wide and the ship is far")
    write_documents(folder / "hills", "a hill stands over a valley of stones")
    recipe = recipe_for(folder)
    prepare(recipe.data, data_folder(recipe), workers=0)
    made = RunFolder(folder / "small")
    made.create(recipe)
    for step in (1, 2):
        engine = PlainEngine(build_model(recipe, lone()).init_parameters(step), recipe.train)
        save(made.checkpoints, step, engine.fragments(), {}, Meta(applied_steps=step, tokens=0), lone())
    return made


def test_the_newest_checkpoint_is_taken_unless_told(run: RunFolder) -> None:
    newest, first = load_trained(run), load_trained(run, step=1)
    assert (newest.step, first.step) == (2, 1)
    expected = build_model(run.recipe(), lone()).init_parameters(2).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in newest.model.state_dict().items())
    assert not newest.model.training


def test_a_checkpoint_that_a_run_at_work_deletes_meanwhile_is_not_missed(
    tmp_path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.path, tmp_path / "at-work")
    at_work = RunFolder(tmp_path / "at-work")
    newest, older = (at_work.checkpoints / name for name in ("step-00000002", "step-00000001"))
    newest.rename(tmp_path / "later")
    build = trained.build_model

    def built(*arguments: Any) -> Any:
        (tmp_path / "later").rename(newest)  # the run commits the next one and deletes what was the newest
        shutil.rmtree(older)
        return build(*arguments)

    monkeypatch.setattr(trained, "build_model", built)
    assert load_trained(at_work).step == 2


def test_figures_of_every_source_and_of_all(run: RunFolder) -> None:
    [result] = evaluate_run(run)
    assert (result["run"], result["step"], result["protocol"]) == ("small", 2, "tail")
    sources, total = result["sources"], result["total"]
    assert list(sources) == ["seas", "hills"]
    for name in ("tokens", "windows", "bytes"):
        assert total[name] == sum(figures[name] for figures in sources.values())
    nats = sum(figures["total_nats"] for figures in sources.values())
    assert total["nats"] == pytest.approx(nats / total["tokens"])
    assert total["perplexity"] == pytest.approx(math.exp(total["nats"]))
    assert total["bits_per_byte"] == pytest.approx(nats / math.log(2) / total["bytes"])


def test_every_token_but_the_first_is_scored(run: RunFolder) -> None:
    found = load_trained(run)
    windows = Windows(data_folder(found.recipe), "held_out", "hills")
    result = held_out_loss(found.model, windows, Scoring(16), CPU)
    assert result["tokens"] == sum(len(row) - 1 for row in windows.read_ragged(list(windows.ids)))
    assert result["windows"] == len(windows)


def test_the_batch_changes_no_figure(run: RunFolder) -> None:
    [one], [many] = evaluate_run(run, batch=1), evaluate_run(run, batch=64)
    assert one["total"]["tokens"] == many["total"]["tokens"]
    assert one["total"]["nats"] == pytest.approx(many["total"]["nats"], rel=1e-6)  # fp32 model: other shapes, other rounding


def test_experts_are_counted_over_all_sources(run: RunFolder) -> None:
    [result], [plain] = evaluate_run(run, experts=True), evaluate_run(run)
    use = result.pop("experts")
    assert result == plain
    assert use["tokens"] == result["total"]["tokens"]
    assert [(visit["visit"], visit["layer"], visit["candidates"]) for visit in use["visits"]] == [(0, 0, 5), (1, 0, 5)]
    assert use["visits"][0]["overlap"] is None and 0 < use["visits"][1]["overlap"] <= 1 <= use["layers"][0]["path_diversity"] <= 2


def test_a_model_without_experts_has_none_to_count(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_trained(run)
    dense = found.recipe.model.model_copy(update={"feed_forward": DenseFeedForwardConfig(d_ff=8)})
    without = dataclasses.replace(found, recipe=found.recipe.model_copy(update={"model": dense}))
    monkeypatch.setattr(evaluate, "load_trained", lambda run, step: without)
    with pytest.raises(RunError, match=r"run 'small' has no experts to count: model\.feed_forward is 'dense'; leave --experts out"):
        evaluate_run(run, experts=True)


def test_part_of_a_source_has_no_bits_per_byte(run: RunFolder) -> None:
    [result] = evaluate_run(run, max_windows=2)
    assert result["total"]["windows"] == 4
    assert "bits_per_byte" not in result["total"]


def test_repeats_are_chosen_at_evaluation_and_reported(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_trained(run)
    windows = Windows(data_folder(found.recipe), "held_out", "hills")
    loaded = []
    monkeypatch.setattr(evaluate, "load_trained", lambda *which: loaded.append(which) or found)
    results = evaluate_run(run, repeats=[1, 2, 5])
    assert [result["repeats"] for result in results] == [1, 2, 5] and len(loaded) == 1, "the model is loaded once"
    for result in results:
        fields = found.recipe.model.model_dump()
        fields["depth"]["repeats"] = result["repeats"]
        model = MoEUT(ModelConfig.model_validate(fields))
        model.load_state_dict(found.model.state_dict())
        assert result["sources"]["hills"]["nats"] == held_out_loss(model, windows, Scoring(16), CPU)["nats"]
    assert evaluate_run(run) == [results[1]]
    assert len({result["total"]["nats"] for result in results}) == 3
    texts = {generate_text(run, "the sea", max_new=12, temperature=0.0, top_k=None, seed=0, repeats=repeats) for repeats in (None, 2, 5)}
    assert len(texts) == 2
    with pytest.raises(ModelError, match="repeats is 0; give 1 or more"):
        evaluate_run(run, repeats=[2, 0])
    assert len(loaded) == 2, "refused before anything is loaded"


def test_the_same_seed_writes_the_same_text(run: RunFolder) -> None:
    def text(seed: int) -> str:
        return generate_text(run, "the sea", max_new=12, temperature=1.0, top_k=None, seed=seed)

    assert text(1).startswith("the sea")
    assert text(1) == text(1)
    assert text(1) != text(2)


def test_the_likeliest_text_is_that_of_the_model_without_a_cache(run: RunFolder) -> None:
    found = load_trained(run)
    tokens = found.tokenizer.encode("the sea")
    with torch.no_grad():
        for _ in range(6):
            tokens.append(int(found.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    expected = load_tokenizer(data_folder(found.recipe)).decode(tokens)
    assert generate_text(run, "the sea", max_new=6, temperature=0.0, top_k=None, seed=0) == expected


def test_an_empty_prompt_starts_a_document(run: RunFolder) -> None:
    assert generate_text(run, "", max_new=3, temperature=0.0, top_k=None, seed=0)


def test_the_page_on_python_runs_as_it_is_written(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOTRON_HOME", str(tmp_path))
    shutil.copytree(run.path, RunFolder.named("quickstart").path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["text"].startswith("def main(") and names["longer_BT"].shape[1] == names["prompt_BT"].shape[1] + 32
    assert list(names["losses"]) == [1, 2, 4, 8] and len(set(names["losses"].values())) == 4
    torch.testing.assert_close(names["again"](names["prompt_BT"], repeats=8).logits, names["logits_BTV"])


def test_a_step_without_a_checkpoint(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"no checkpoint of step 7 .* steps: 1, 2"):
        load_trained(run, step=7)


def test_a_run_without_checkpoints(tmp_path: Path, run: RunFolder) -> None:
    young = RunFolder(tmp_path / "young")
    young.create(run.recipe())
    with pytest.raises(RunError, match="run 'young' has no checkpoint yet"):
        load_trained(young)
