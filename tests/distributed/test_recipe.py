"""Recipes: every fault is told with the field, the value and the mend."""

import re
from pathlib import Path

import pytest

from distributed.errors import RunError
from distributed.recipe_file import load_recipe
from distributed.world_rules import check_world

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
PEER = ["expert_parallel.size=1", "model.feed_forward={kind: peer, n_keys: 8, d_key: 4}"]


CORPORA = sorted((CONFIGS / "corpora").glob("*.yaml"))


@pytest.mark.parametrize("path", [path for path in sorted(CONFIGS.rglob("*.yaml")) if path not in CORPORA], ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid(path: Path) -> None:
    assert load_recipe(path).train.steps > 0


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_a_corpus_takes_the_place_of_a_recipe_s(path: Path) -> None:
    recipe = load_recipe(CONFIGS / "paper" / "moeut_244m.yaml", [f"data=@{path}"])
    assert recipe.data.sources[0].name == path.stem
    end = "none" if path.stem == "the_stack" else "story_sep"
    assert (recipe.data.seq_len, recipe.data.tokenizer.kind, recipe.data.tokenizer.resolved_end) == (1024, "sentencepiece_bpe", end)
    assert recipe.data.order == ("shuffled" if path.stem == "the_stack" else "streams")


def test_overrides_reach_nested_fields_and_lists() -> None:
    overrides = ["train.lr=3e-4", "model.feed_forward.top_k=3", "data.sources.0.max_megabytes=2", "train.clip=null"]
    recipe = load_recipe(QUICKSTART, overrides)
    assert recipe.train.lr == 3e-4
    assert recipe.model.feed_forward.top_k == 3
    assert recipe.data.sources[0].max_megabytes == 2
    assert recipe.train.clip is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.lrr=1", ["train.lrr", "unknown field", "did you mean lr?"]),
        ("model.feed_forward.top_k=999", ["model.feed_forward", "top_k is 999", "choose top_k <="]),
        ("train.steps=abc", ["train.steps", "'abc'", "integer"]),
        ("train.lr=-1", ["train.lr", "-1", "greater than 0"]),
        ("model.feed_forward={kind: peer, n_keys: 4, d_key: 3}", ["model.feed_forward.d_key", "multiple of 2", "got 3"]),
        ("model.feed_forward.kind=foo", ["model.feed_forward.kind: must be one of sigma_moe, ", "(got 'foo')"]),
        ("model.feed_forward.kind=sigma_mo", ["did you mean sigma_moe?"]),
        ("model.feed_forward.balance={kind: mim, mim: papr}", ["  model.feed_forward.balance.mim: Input should be 'paper' or 'released'"]),
        (
            "model.feed_forward.balance={kind: switch, mim: paper}",
            ["  model.feed_forward.balance.mim: unknown field; the fields here are kind, scope"],
        ),
        (
            "model.halting.loss_weight=0.1",
            ["  model.halting: give kind as well: one of none, stick_breaking, act; for example model.halting={kind: stick_breaking,"],
        ),
        (
            "model.depth.sample={max: 99}",
            ["model.depth.sample: give kind as well", "for example model.depth.sample={kind: uniform, max: 99}"],
        ),
        ("model.feed_forward.balance.scope=micro_batch", ['for example model.feed_forward.balance={kind: entropy, scope: "micro_batch"}']),
        ("model.halting=act", ["  model.halting: a group of fields", "got 'act'", "write model.halting.kind=act, or {kind: act}"]),
        ("model.residual=altupp", ["  model.residual: a group of fields", "one of single, altup, recycled_altup; did you mean altup?"]),
        ("model.feed_forward_at={0: pkm}", ["write model.feed_forward_at.0.kind=pkm"]),
        ("model.depth=8", ["  model.depth: a group of fields, not one value (got 8); the fields here are prelude, group,"]),
        ("model.depth.backprop_repeats=5", ["backprop_repeats is 5 but a pass makes at most 4 repeats; choose backprop_repeats <= 4"]),
        ("train.lr=inf", ["  train.lr: Input should be a finite number (got inf)"]),
        ("train.betas=[0.9, .nan]", ["  train.betas.1: Input should be a finite number (got nan)"]),
        ("data.held_out_fraction=.nan", ["  data.held_out_fraction: Input should be a finite number (got nan)"]),
        ("train.lr=2026-13-45", ["  train.lr: Input should be a valid number", "(got '2026-13-45')"]),
        ("expert_parallel.size=true", ["  expert_parallel: size is true, where a number belongs"]),
        ("train.clip=false", ["  train: clip is false, where a number belongs"]),
        ("train.zero_stage=true", ["  train: zero_stage is true, where a number belongs"]),
        ("data.sources.0.max_megabytes=true", ["  data.sources.0: max_megabytes is true, where a number belongs"]),
        ("model.depth.sample={kind: uniform, max: 0}", ["  model.depth.sample.max: Input should be greater than or equal to 1 (got 0)"]),
        (
            "model.feed_forward_at={0: {kind: pkm, n_keys: 8, d_kex: 4}}",
            ["  model.feed_forward_at.0.d_kex: unknown field; did you mean d_key?"],
        ),
        ("model.depth.residual_scale=wide", ["  model.depth.residual_scale: Input should be '1/R' or '1/sqrt(R)' (got 'wide')"]),
        ("data.sources.0.kindd=code", ["  data.sources.0.kindd: unknown field; did you mean kind?"]),
        ("data.tokenizer.vocab_size=5000", ["model.vocab_size", "5000", "equal"]),
        ("router.replay=use", ["router.choices"]),
        ("train", ["field.name=value"]),
        ("data.sources.7.path=x", ["position from 0 to 0"]),
        ("name=../elsewhere", ["name: must be letters, digits, _ . - and begin with a letter or digit (got '../elsewhere')"]),
        ("data=@nowhere.yaml", ["override 'data=@nowhere.yaml': there is no file 'nowhere.yaml'", "corpora/c4, corpora/pes2o"]),
        ("data=@pesO2.yaml", ["did you mean @corpora/pes2o?"]),
        (f"data=@{__file__}", [f"override 'data=@{__file__}'", "is not YAML"]),
    ],
)
def test_faults_are_named(override: str, told: list[str]) -> None:
    with pytest.raises(RunError) as fault:
        load_recipe(QUICKSTART, [override])
    for words in told:
        assert words in str(fault.value)


def test_an_override_finds_a_layer_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    memory = "feed_forward: {kind: dense, d_ff: 8}\n  feed_forward_at: {1: {kind: pkm, d_key: 4}}"
    path.write_text(re.sub(r"feed_forward: .*", memory, QUICKSTART.read_text()))
    slot = load_recipe(path, ["expert_parallel.size=1", "model.feed_forward_at.1.n_keys=30"]).model.feed_forward_at[1]
    assert (slot.kind, getattr(slot, "n_keys", None)) == ("pkm", 30)
    slots = load_recipe(path, ["expert_parallel.size=1", "model.feed_forward_at.1={kind: dense, d_ff: 4}"]).model.feed_forward_at
    assert slots[1].kind == "dense"


def test_a_corpus_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs/corpora/pes2o.yaml", "corpora/pes2o.yaml", "corpora/pes2o"):
        assert load_recipe(CONFIGS / "paper" / "moeut_244m.yaml", [f"data=@{name}"]).data.sources[0].name == "pes2o"


def test_the_kind_that_a_slot_has_by_itself_is_suggested_first() -> None:
    switch = "model.feed_forward={kind: switch, n_experts: 8}"
    with pytest.raises(RunError, match=r"for example model\.feed_forward\.balance={kind: switch, scope: \"step\"}"):
        load_recipe(QUICKSTART, [switch, "model.feed_forward.balance.scope=step"])


def test_choices_of_tokens_that_halt_are_not_replayed() -> None:
    with pytest.raises(RunError, match=r"router\.replay is 'record', but with model\.halting 'act' .* set router\.replay=off"):
        load_recipe(QUICKSTART, ["router.replay=record", "model.halting={kind: act}"])


def test_momha_is_not_partitioned() -> None:
    momha = "model.attention={kind: momha, n_heads: 2, d_head: 16, n_experts: 4, top_k: 2}"
    with pytest.raises(
        RunError, match=r"expert_parallel\.attention is true, but model\.attention 'momha' .* set expert_parallel\.attention=false"
    ):
        load_recipe(QUICKSTART, [momha, "expert_parallel.attention=true"])


def test_unreadable_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="configs/"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    with pytest.raises(RunError, match="not YAML"):
        load_recipe(broken)
    broken.write_text("date: 2026-13-45")
    with pytest.raises(RunError, match="not YAML: month must be in 1"):
        load_recipe(broken)
    broken.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(RunError, match=rf"recipe {broken} is not a text file"):
        load_recipe(broken)


@pytest.mark.parametrize(
    ("overrides", "workers", "told"),
    [
        (["expert_parallel.size=2"], 3, "expert_parallel.size is 2, which does not divide 3 workers"),
        (["expert_parallel.size=1"], 3, "train.global_batch is 8, which 3 workers cannot share equally; choose 6 or 9"),
        (["expert_parallel.size=1", "train.global_batch=2"], 3, "fewer than one sequence a worker"),
        (["expert_parallel.size=2", "model.feed_forward={kind: dense, d_ff: 8}"], 2, "has no experts"),
        (["expert_parallel.size=1", "table_parallel.size=3"], 4, "table_parallel.size is 3, which does not divide 4 workers"),
        (
            ["table_parallel.size=2"],
            2,
            "table_parallel.size is 2 but model.feed_forward.kind is 'sigma_moe', which has no tables; set it to 1",
        ),
        ([*PEER, "table_parallel.size=4", "model.d_model=2"], 4, "more than model.d_model, 2 columns"),
    ],
)
def test_a_recipe_must_fit_its_workers(overrides: list[str], workers: int, told: str) -> None:
    with pytest.raises(RunError, match=told.replace(".", r"\.")):
        check_world(load_recipe(QUICKSTART, overrides), workers)


def test_tables_may_be_cut_in_single_layers() -> None:
    check_world(load_recipe(QUICKSTART, [*PEER, "table_parallel.size=4"]), 4)
    single = ["expert_parallel.size=1", "model.feed_forward={kind: dense, d_ff: 8}"]
    check_world(
        load_recipe(QUICKSTART, [*single, "model.feed_forward_at={0: {kind: pkm, n_keys: 8, d_key: 4}}", "table_parallel.size=2"]), 2
    )


def test_uneven_batches_on_request() -> None:
    overrides = ["expert_parallel.size=1", "train.global_batch=16", "train.uneven_batch=true"]
    check_world(load_recipe(QUICKSTART, overrides), 3)
