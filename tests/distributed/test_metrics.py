"""Metrics: reductions over ranks against figures known in advance, files, and what a restart takes back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from metrics_work import N_EXPERTS, STEPS, TOKENS, choices, loads, lone, recipe, train
from pool import Pool
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distributed.clock import PARTS, StepClock
from distributed.figures import load_figures
from distributed.metrics import Metrics
from distributed.run_folder import RunFolder
from model.accounting import train_flops_per_token


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "small")
    folder.create(recipe())
    return folder


def lines(run: RunFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def curve(run: RunFolder, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in EventAccumulator(str(run.tensorboard)).Reload().Scalars(tag)]


def words(run: RunFolder) -> list[str]:
    events = EventAccumulator(str(run.tensorboard)).Reload().Tensors("run/start/text_summary")
    return [event.tensor_proto.string_val[0].decode() for event in events]


def test_an_interval_of_one_rank(run: RunFolder) -> None:
    figures = train(run, lone())
    assert figures["loss"] == 2.0
    assert figures["perplexity"] == pytest.approx(math.exp(2.0))
    assert figures["balance_loss"] == pytest.approx(0.2)
    assert figures["grad_norm"] == 1.0
    assert figures["grad_norm_max"] == 1.5
    assert figures["tokens"] == STEPS * TOKENS
    assert figures["step_seconds"] == 1.0
    assert figures["tokens_per_second"] == TOKENS
    assert figures["parts"] == {**dict.fromkeys(PARTS, 0.0), "forward": 0.5, "experts": 0.5}
    assert figures["model_flop_use"] > 0
    assert figures["flops"] == STEPS * TOKENS * train_flops_per_token(recipe().model, recipe().data.seq_len)
    assert figures["host_bytes_max"] > 10**6


def test_load_figures_of_one_rank(run: RunFolder) -> None:
    load = train(run, lone())["load"]
    assert load["dead_share_by_visit"] == {0: 0.0, 1: 6 / 7}
    assert load["never_used_share"] == 0.0
    assert load["routing_entropy_by_visit"] == pytest.approx({0: 1.0, 1: 0.0})
    assert load["rank_imbalance"] == 1.0


def test_layers_without_experts_have_no_row_of_loads() -> None:
    """Three rows of layer 1, whose last expert nobody meets and whose visit 5 is not made, and one of layer 3, where all meet one."""
    loads_VE = torch.tensor([[6, 2, 0, 0], [2, 4, 2, 0], [0, 0, 0, 0], [0, 8, 0, 0]])
    routes_WV = torch.tensor([[8.0, 6.0, 0.0, 0.0], [0.0, 2.0, 0.0, 8.0]])
    load = load_figures(loads_VE, routes_WV, {1: 1, 3: 1, 5: 1, 7: 3})
    assert load["dead_share_by_visit"] == {1: 0.5, 3: 0.25, 5: 1.0, 7: 0.75}
    assert (load["dead_share"], load["never_used_share"]) == (0.5, 4 / 8)
    assert load["rank_imbalance_by_visit"] == {1: 2.0, 3: 1.5, 5: 1.0, 7: 2.0}
    assert load["rank_imbalance"] == pytest.approx(5.5 / 3)
    assert load["routing_entropy_by_visit"][7] == 0.0 and load["unevenness_by_visit"][7] == pytest.approx(math.log(4))


def test_unevenness_is_of_the_whole_interval(run: RunFolder) -> None:
    load = train(run, lone())["load"]
    assert load["unevenness_by_visit"] == pytest.approx({0: 0.0, 1: math.log(N_EXPERTS)}, abs=1e-12)
    assert load["unevenness"] == pytest.approx(math.log(N_EXPERTS) / 2)
    three_to_one = load_figures(torch.tensor([[6, 2]]), torch.tensor([[8.0]]), {0: 0})
    assert three_to_one["unevenness"] == pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_overlap_is_of_the_last_micro_batch(run: RunFolder) -> None:
    """{0, 1} then {1, 2}: one of three in common, three met by a token that meets two a visit."""
    use = train(run, lone())["use"]
    expected = {"overlap": 1 / 3, "overlap_by_visit": {1: 1 / 3}, "path_diversity": 1.5, "path_diversity_by_layer": {0: 1.5}}
    assert use.keys() == expected.keys()
    assert all(use[name] == pytest.approx(value) for name, value in expected.items())
    assert curve(run, "use/overlap") == curve(run, "use_by_visit/overlap_01") == [(3, pytest.approx(1 / 3))]
    assert curve(run, "use_by_layer/path_diversity_00") == [(3, 1.5)]


@pytest.mark.parametrize(("world", "expert_parallel"), [(2, 2), (4, 2)])
def test_ranks_are_reduced_to_the_same_figures(run: RunFolder, pool: Pool, world: int, expert_parallel: int) -> None:
    figures, *others = pool.run(world, "metrics_work:train_rank", folder=str(run.path), expert_parallel=expert_parallel)
    assert others == [{}] * (world - 1)
    assert figures["loss"] == pytest.approx(2.0)
    assert figures["balance_loss"] == pytest.approx(0.2)
    assert figures["tokens"] == STEPS * TOKENS * world
    assert figures["step_seconds"] == (world + 1) / 2
    assert figures["parts"]["experts"] == (world + 1) / 4
    # Experts 0-2 live on even ranks and 3-6 on odd ones. First visit: rank 0 sends 6 and 8, every other rank 14 to its odd one.
    first = {2: [6, 22], 4: [6, 22, 0, 28]}[world]
    expected = {0: max(first) / (sum(first) / world), 1: 2.0}
    assert figures["load"]["rank_imbalance_by_visit"] == pytest.approx(expected)
    assert figures["load"]["dead_share_by_visit"] == {0: 0.0, 1: 6 / 7}
    assert figures["use"]["overlap"] == pytest.approx((1 / 3 + world - 1) / world)
    assert figures["use"]["path_diversity"] == pytest.approx((3 + 2 * (world - 1)) / (2 * world))


def test_where_weights_move_a_rank_computes_its_own_routes(run: RunFolder, pool: Pool) -> None:
    figures, _ = pool.run(2, "metrics_work:train_rank", folder=str(run.path), expert_parallel=2, move="weights")
    assert figures["load"]["rank_imbalance_by_visit"] == {0: 1.0, 1: 1.0}


def test_skipped_steps_leave_no_trace_in_the_loss(run: RunFolder) -> None:
    figures = train(run, lone(), skip=2)
    assert figures["loss"] == 2.0
    assert figures["grad_norm_max"] == 1.5
    assert figures["skipped_steps"] == 1


def test_an_interval_without_a_loss_is_still_json(run: RunFolder) -> None:
    train(run, lone(), stop=1, skip=1)
    text = run.metrics_path.read_text()
    assert "NaN" not in text
    assert json.loads(text.splitlines()[0])["loss"] is None


def test_state_is_what_status_shows(run: RunFolder) -> None:
    train(run, lone())
    state = run.read_state()
    assert state["state"] == "running"
    assert (state["step"], state["steps"], state["loss"], state["seconds_left"]) == (3, 12, 2.0, 9.0)
    run.stop_path.touch()
    train(run, lone(), start=3, stop=6)
    assert run.read_state()["state"] == "stopping"


def test_a_restart_takes_back_what_it_will_do_again(run: RunFolder) -> None:
    train(run, lone(), stop=3)
    train(run, lone(), start=3, stop=6)
    train(run, lone(), start=3, stop=9)
    assert [(line["step"], line.get("loss")) for line in lines(run)] == [(3, 2.0), (3, None), (9, 6.5), (9, None)]
    assert curve(run, "loss/train") == [(3, 2.0), (9, 6.5)]
    assert curve(run, "held_out_loss/python") == [(3, 2.0), (9, 2.0)]


def test_a_line_cut_by_a_crash_is_dropped_at_the_restart(run: RunFolder) -> None:
    train(run, lone())
    with run.metrics_path.open("a") as file:
        file.write('{"step": 3, "lo')
    train(run, lone(), start=3, stop=6)
    assert [line["step"] for line in lines(run)] == [3, 3, 6, 6]


def test_a_change_of_world_is_marked(run: RunFolder, pool: Pool) -> None:
    pool.run(2, "metrics_work:train_rank", folder=str(run.path), expert_parallel=1)
    train(run, lone(), start=3, stop=6)
    first, second = words(run)
    assert first.startswith("Started with 2 ranks, expert parallelism 1.")
    assert second.startswith("Resumed after step 3 with 1 ranks, expert parallelism 1 (world changed from 2 to 1 ranks).")


def test_heat_maps_come_at_their_interval(run: RunFolder) -> None:
    train(run, lone())
    events = EventAccumulator(str(run.tensorboard), size_guidance={"images": 0}).Reload()
    (picture,) = events.Images("expert_load/layer_0")
    assert (picture.step, picture.width, picture.height) == (3, 1024 // N_EXPERTS * N_EXPERTS, 2 * 24)


def test_repeats_are_figures_where_they_are_drawn(run: RunFolder, tmp_path: Path) -> None:
    train(run, lone())
    assert "depth/repeats" not in EventAccumulator(str(run.tensorboard)).Reload().Tags()["scalars"]
    assert run.read_state()["repeats"] is None
    drawing = RunFolder(tmp_path / "drawing")
    drawing.create(recipe())
    metrics = Metrics(
        drawing,
        recipe(depth={"group": 1, "repeats": 2, "sample": {"kind": "uniform", "max": 3}}),
        lone(),
        0,
        StepClock(torch.device("cpu")),
    )
    for step, repeats in ((1, 3), (2, 2)):
        metrics.observe(SimpleNamespace(loads=[*loads(0), loads(0)[0]], records=[]), TOKENS)
        metrics.step(step, torch.tensor(1.0), torch.tensor(0.0), grad_norm=1.0, lr=1.0, tokens=TOKENS, repeats=repeats)
    metrics.log(2)
    metrics.close()
    assert curve(drawing, "depth/repeats") == [(2, 2.5)]
    assert (lines(drawing)[0]["repeats"], drawing.read_state()["repeats"]) == (2.5, 2.5)


def test_a_routed_group_between_other_layers(run: RunFolder) -> None:
    """Dense, then the two visits of the other tests, then top-K: curves carry the visits' own numbers, one layer has a picture."""
    ends = {0: {"kind": "dense", "d_ff": 4}, 2: {"kind": "topk", "d_ff": 5, "top_k": 1}}
    depth = {"prelude": 1, "group": 1, "repeats": 2, "coda": 1}
    metrics = Metrics(run, recipe(depth=depth, feed_forward_at=ends), lone(), 0, StepClock(torch.device("cpu")))
    for step in range(1, STEPS + 1):
        records = [{}, *choices(0, STEPS), {"feed_forward": torch.tensor([[3], [3], [3], [0]])}]
        metrics.observe(SimpleNamespace(loads=loads(0), records=records), TOKENS)
        metrics.step(step, torch.tensor(1.0), torch.tensor(0.0), grad_norm=1.0, lr=1.0, tokens=TOKENS, repeats=2)
    metrics.log(STEPS)
    metrics.close()
    load, use = metrics.figures["load"], metrics.figures["use"]
    assert (load["dead_share"], load["never_used_share"]) == (3 / 7, 0.0)
    assert json.loads(run.metrics_path.read_text())["load"]["dead_share_by_visit"] == {"1": 0.0, "2": 6 / 7}
    assert (use["overlap_by_visit"], use["path_diversity_by_layer"]) == ({2: pytest.approx(1 / 3)}, {1: 1.5})
    assert curve(run, "load_by_visit/dead_share_02") == [(STEPS, pytest.approx(6 / 7))]
    events = EventAccumulator(str(run.tensorboard), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["expert_load/layer_1"]
    assert events.Images("expert_load/layer_1")[0].height == 2 * 24


def test_a_model_without_experts(run: RunFolder) -> None:
    clock = StepClock(torch.device("cpu"))
    dense = recipe(feed_forward={"kind": "dense", "d_ff": 4})
    metrics = Metrics(run, dense, lone(), 0, clock, epoch_of=lambda step: step / 4)
    metrics.observe(SimpleNamespace(loads=[], records=[]), TOKENS)
    metrics.step(1, torch.tensor(1.0), torch.tensor(0.0), grad_norm=1.0, lr=1.0, tokens=TOKENS, repeats=2)
    metrics.log(1)
    metrics.close()
    assert metrics.figures["load"] == metrics.figures["use"] == {}
    assert metrics.figures["epoch"] == 0.25
    assert sum(metrics.figures["parts"].values()) > 0
