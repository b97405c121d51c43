"""A run from real shards to checkpoints: stopping and resuming changes no bit, the world changes no sample.

The checkpoint digests cover masters, moments and random states; metrics and sample ids cover the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pool import Pool
from safetensors.torch import load_file
from small_run import recipe_values, write_corpus
from trainer_work import losses

from distributed.checkpoint import checkpoint_path, read_manifest
from model.repeats import UniformRepeats


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder)
    return folder


def state(home: Path, name: str, step: int) -> dict[str, Any]:
    """What must be equal: every file's digest, the counters and the data state of a checkpoint."""
    manifest = read_manifest(checkpoint_path(home / "runs" / name / "checkpoints", step))
    files = [record.digest for _, record in sorted(manifest.files.items())]
    return {"files": files, "step": manifest.step, **manifest.meta.model_dump(include={"tokens", "applied_steps", "data", "metrics"})}


def run(pool: Pool, home: Path, values: dict[str, Any], stop: int | None, resume: bool = False, ranks: int = 2) -> list[str]:
    outcomes: list[str] = pool.run(ranks, "trainer_work:run", home=str(home), values=values, stop=stop, resume=resume, timeout=280)
    return outcomes


def test_stopped_and_resumed_twice_across_an_epoch_the_bits_are_equal(home: Path, pool: Pool) -> None:
    undisturbed = recipe_values(home) | {"name": "undisturbed"}
    stopped = recipe_values(home) | {"name": "stopped"}
    assert run(pool, home, undisturbed, None) == ["finished"] * 2
    assert run(pool, home, stopped, 3) == ["stopped"] * 2
    assert run(pool, home, stopped, 10, resume=True) == ["stopped"] * 2
    assert run(pool, home, stopped, None, resume=True) == ["finished"] * 2
    assert state(home, "stopped", 12) == state(home, "undisturbed", 12)
    assert losses(str(home), "stopped") == losses(str(home), "undisturbed")


def test_a_run_with_peer_in_one_layer_resumes_with_equal_bits(home: Path, pool: Pool) -> None:
    """Tables and sub-keys are ordinary replicated parameters; there are no experts with counted routes."""
    values = recipe_values(home, steps=4, engine="plain") | {"expert_parallel": {"size": 1}}
    peer = {"kind": "peer", "n_keys": 5, "heads": 2, "top_k": 4, "d_key": 6}
    values["model"] |= {"norm": "pre", "feed_forward": {"kind": "topk", "d_ff": 24, "top_k": 6}, "feed_forward_at": {1: peer}}
    assert run(pool, home, values | {"name": "peer"}, None, ranks=1) == ["finished"]
    assert run(pool, home, values | {"name": "peer_stopped"}, 2, ranks=1) == ["stopped"]
    assert run(pool, home, values | {"name": "peer_stopped"}, None, resume=True, ranks=1) == ["finished"]
    assert state(home, "peer_stopped", 4) == state(home, "peer", 4)
    assert losses(str(home), "peer_stopped") == losses(str(home), "peer")


def test_sampled_repeats_are_those_of_the_step_on_all_ranks_and_after_a_resume(home: Path, pool: Pool) -> None:
    """With everything that visits may have of their own, a truncated backward and experts on two ranks."""
    values = recipe_values(home, steps=6)
    depth = {
        "repeats": 2,
        "coda": 1,
        "sample": {"kind": "uniform", "max": 3},
        "per_visit": ["router", "norm", "embedding", "residual_scale"],
        "backprop_repeats": 2,
    }
    values["model"]["depth"] |= depth
    values |= {"router": {"replay": "record"}}
    assert run(pool, home, values | {"name": "sampled"}, None) == ["finished"] * 2
    assert run(pool, home, values | {"name": "sampled_stopped"}, 3) == ["stopped"] * 2
    assert run(pool, home, values | {"name": "sampled_stopped"}, None, resume=True) == ["finished"] * 2
    assert state(home, "sampled_stopped", 6) == state(home, "sampled", 6)
    drawn = [UniformRepeats(max=3).draw(values["seed"], step) for step in range(6)]
    assert len(set(drawn)) == 3
    for name in ("sampled", "sampled_stopped"):
        lines = (home / "runs" / name / "metrics.jsonl").read_text().splitlines()
        logged = [line for line in map(json.loads, lines) if "loss" in line]
        assert [line["repeats"] for line in logged] == drawn
        assert [sum(dead < 1 for dead in line["load"]["dead_share_by_visit"].values()) for line in logged] == [
            2 * repeats + 1 for repeats in drawn
        ]
    for step, repeats in enumerate(drawn):
        files = list((home / "runs" / "sampled" / "choices" / f"step-{step:08d}").glob("*.safetensors"))
        assert {len({key.split("/")[0] for key in load_file(file)} - {"ids", "made"}) for file in files} == {2 * repeats + 1}
    replayed = values | {"name": "sampled_replayed", "router": {"replay": "use", "choices": "sampled"}}
    assert run(pool, home, replayed | {"expert_parallel": {"size": 2, "move": "weights"}}, None) == ["finished"] * 2
    assert losses(str(home), "sampled_replayed") == pytest.approx(losses(str(home), "sampled"), rel=1e-5)


def test_with_weights_moving_the_losses_are_the_same_and_so_are_the_bits_of_a_resumed_run(home: Path, pool: Pool) -> None:
    """Micro-batches, validation in between, a stop and a start by a choice that `auto` made once."""
    tokens, weights, auto = (
        recipe_values(home) | {"name": name, "expert_parallel": {"size": 2, "move": name}, "validation": {"every": 5, "windows": 8}}
        for name in ("tokens", "weights", "auto")
    )
    for values in (tokens, weights):
        assert run(pool, home, values, None) == ["finished"] * 2
    expected = losses(str(home), "tokens")
    assert losses(str(home), "weights") == pytest.approx(expected, rel=1e-5)
    assert run(pool, home, auto, 5) == ["stopped"] * 2
    move = json.loads((home / "runs" / "auto" / "move.json").read_text())["move"]
    assert run(pool, home, auto, None, resume=True) == ["finished"] * 2
    assert state(home, "auto", 12) == state(home, move, 12)


def test_step_to_sample_ids_is_the_same_in_any_world_and_on_any_hosts(home: Path, pool: Pool) -> None:
    expected: dict[int, list[int]] = {}
    for hosts in ([1], [2], [2, 1], [3, 1]):  # ranks of each host
        world = sum(hosts)
        values = recipe_values(home, uneven_batch=True, steps=8) | {"name": f"world{world}", "expert_parallel": {"size": 1}}
        values["data"]["loader_workers"] = 0  # read ahead in the test above
        seen = pool.run(world, "trainer_work:ids_of_steps", home=str(home), values=values, hosts=hosts, timeout=280)
        ids = {step: [sample for rank in seen for at, micro in rank if at == step for sample in micro] for step in range(8)}
        assert all(len(samples) == len(set(samples)) == 8 for samples in ids.values())
        expected = expected or ids
        assert ids == expected
    first_epoch = [sample for step in range(4) for sample in expected[step]]
    assert len(set(first_epoch)) == len(first_epoch)


def test_a_run_whose_tokens_halt_resumes_with_equal_bits(home: Path, pool: Pool) -> None:
    """Every rank has its own number of tokens in a pass; both make all passes. What was saved is a figure of the run."""
    values = recipe_values(home, steps=4)
    values["model"] |= {"depth": {"group": 1, "repeats": 3}, "halting": {"kind": "act", "epsilon": 0.27}}
    assert run(pool, home, values | {"name": "halting"}, None) == ["finished"] * 2
    assert run(pool, home, values | {"name": "halting_stopped"}, 2) == ["stopped"] * 2
    assert run(pool, home, values | {"name": "halting_stopped"}, None, resume=True) == ["finished"] * 2
    assert state(home, "halting_stopped", 4) == state(home, "halting", 4)
    values["model"]["halting"] |= {"loss_weight": 0.0}
    assert run(pool, home, values | {"name": "halting_free"}, 2) == ["stopped"] * 2
    assert state(home, "halting_free", 2)["files"] != state(home, "halting_stopped", 2)["files"]
    lines = [json.loads(line) for line in (home / "runs/halting/metrics.jsonl").read_text().splitlines()]
    figures = [line["halting"] for line in lines if "halting" in line]
    assert len(figures) == 4
    for figure in figures:
        assert 1.0 < figure["mean_passes"] < 3.0 and 0.0 < figure["saved_share"] < 1.0
        assert 0.01 * figure["mean_passes"] < figure["loss"] < 0.01 * (figure["mean_passes"] + 1)


def test_a_run_with_cut_tables_is_the_run_with_whole_ones(home: Path, pool: Pool) -> None:
    """One held-out window for two ranks: the one without it must join its collectives."""
    values = recipe_values(home, steps=2) | {"expert_parallel": {"size": 1}, "validation": {"every": 2, "windows": 1}}
    values["model"]["feed_forward"] = {"kind": "peer", "n_keys": 8, "heads": 2, "top_k": 4, "d_key": 8}
    for size in (1, 2):
        run(pool, home, {**values, "name": f"cut-{size}", "table_parallel": {"size": size}}, stop=None)
    whole, cut = (losses(str(home), f"cut-{size}") for size in (1, 2))
    assert len(whole) == 2 and cut == pytest.approx(whole, rel=1e-4)
