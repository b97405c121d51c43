"""Overlap, path diversity, usage and unevenness on choices whose answers are known by hand or by sets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from evaluate_work import N_WINDOWS, ListedWindows, model_for, recipe
from metrics_work import lone
from pool import Pool

from distributed import expert_use
from distributed.expert_use import ExpertUse, visit_figures
from distributed.held_out import Scoring, held_out_loss
from distributed.visit_overlap import VisitOverlap, compare
from model.config import ModelConfig

CPU = torch.device("cpu")
ABAB, AABB = [0, 1, 0, 1], [0, 0, 1, 1]
SAME = torch.tensor([[0, 1], [2, 3]])
OTHER = torch.tensor([[2, 3], [4, 5]])
HALF = torch.tensor([[1, 2], [3, 4]])


def config(feed_forward: dict[str, Any], repeats: int = 2) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "vocab_size": 61,
            "d_model": 8,
            "depth": {"group": 1, "repeats": repeats},
            "attention": {"kind": "dense", "n_heads": 2, "d_head": 4},
            "feed_forward": feed_forward,
        }
    )


SIGMA_MOE = {"kind": "sigma_moe", "n_experts": 6, "d_expert": 4, "top_k": 2}
PEER = {"kind": "peer", "n_keys": 3, "heads": 2, "top_k": 2, "d_key": 4}


def counted(schedule: list[int], *picks: Any) -> tuple[list[float | None], list[float | None]]:
    overlap = VisitOverlap(schedule, CPU)
    overlap.add(picks)
    return overlap.overlaps(overlap.sums), overlap.path_diversity(overlap.sums)


def test_visits_side_by_side() -> None:
    """{3} and {3, 4}; {0, 1} and {2}; expert 0 in the second visit alone does not follow expert 0 of none."""
    found = compare([torch.tensor([[3, 3], [1, 0], [5, 6]]), torch.tensor([[3, 4], [2, 2], [0, 5]])])
    assert found.chosen_NR.tolist() == [[1, 2], [2, 1], [2, 2]]
    assert (found.both_NS.tolist(), found.met_N.tolist()) == ([[1], [0], [1]], [2, 3, 3])
    assert compare([torch.empty(0, 4, dtype=torch.int64)]).met_N.tolist() == []


def test_the_same_experts_overlap_wholly_and_others_not_at_all() -> None:
    """Layer 0 takes the same experts twice, layer 1 none again: a token meets 2 or 4 experts of 2."""
    assert counted(ABAB, SAME, SAME, SAME.flip(1), OTHER) == ([None, None, 1.0, 0.0], [1.0, 2.0])


def test_order_of_visits_is_the_schedule() -> None:
    assert counted(AABB, SAME, SAME, SAME, OTHER) == ([None, 1.0, None, 0.0], [1.0, 2.0])


def test_one_of_two_in_common() -> None:
    """{0, 1} and {1, 2}: one of three. Over three visits {0, 1}, {1, 2}, {0, 1} a token meets 3 experts, 2 a visit."""
    assert counted([0, 0, 0], SAME, HALF, SAME) == ([None, pytest.approx(1 / 3), pytest.approx(1 / 3)], [1.5])


def test_a_layer_without_a_second_visit_or_without_choices_has_none() -> None:
    assert counted([0, 1, 1, 2, 2], SAME, None, None, SAME, HALF) == ([None, None, None, None, pytest.approx(1 / 3)], [None, None, 1.5])


def test_picks_that_repeat_count_once() -> None:
    """Two heads of a product-key layer may pick one slot: {0} and {0, 1}."""
    assert counted([0, 0], torch.tensor([[0, 0]]), torch.tensor([[0, 1]])) == ([None, 0.5], [pytest.approx(2 / 1.5)])


def test_against_sets() -> None:
    generator = torch.Generator().manual_seed(5)
    schedule = [0, 1, 2, 1, 2, 1, 2, 3]
    picks = [torch.randint(9, (13, 4), generator=generator) for _ in schedule]
    overlaps, diversities = counted(schedule, *picks)
    sets = [[set(row) for row in picked.tolist()] for picked in picks]
    for before, visit in ((1, 3), (3, 5), (2, 4), (4, 6)):
        expected = [len(a & b) / len(a | b) for a, b in zip(sets[before], sets[visit], strict=True)]
        assert overlaps[visit] == pytest.approx(sum(expected) / 13)
    for layer, visits in ((1, (1, 3, 5)), (2, (2, 4, 6))):
        met = sum(len(set().union(*(sets[visit][token] for visit in visits))) for token in range(13))
        assert diversities[layer] == pytest.approx(met / (sum(len(row) for visit in visits for row in sets[visit]) / 3))
    assert [overlaps[visit] for visit in (0, 1, 2, 7)] == [None] * 4


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([5, 5, 5, 5], {"dead": 0, "usage": 1.0, "unevenness": 0.0, "imbalance": 1.0}),
        ([0, 0, 20, 0], {"dead": 3, "usage": 0.25, "unevenness": math.log(4), "imbalance": 4.0}),
        ([10, 0, 10, 0], {"dead": 2, "usage": 0.5, "unevenness": math.log(2), "imbalance": 2.0}),
    ],
)
def test_known_distributions(routes: list[int], expected: dict[str, float]) -> None:
    figures = visit_figures(torch.tensor(routes), torch.zeros(4))
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert (figures["gate_usage"], figures["gate_unevenness"]) == (None, None)


def test_records_of_routed_experts() -> None:
    use = ExpertUse(config(SIGMA_MOE), CPU)
    use.add([{"feed_forward": SAME}, {"feed_forward": OTHER}])
    use.add([{"feed_forward": SAME}, {"feed_forward": SAME}])
    figures = use.figures(use.sums())
    first, second = figures["visits"]
    assert figures["tokens"] == 4
    assert (first["candidates"], first["dead"], first["overlap"]) == (6, 2, None)
    assert (second["dead"], second["overlap"], second["unevenness"]) == (0, 0.5, pytest.approx(math.log(6) - entropy([1, 1, 2, 2, 1, 1])))
    (layer,) = figures["layers"]
    assert (layer["dead"], layer["path_diversity"]) == (0, 1.5)
    assert layer["unevenness"] == pytest.approx(math.log(6) - entropy([3, 3, 4, 4, 1, 1]))


def test_tokens_are_taken_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"feed_forward": SAME}, {"feed_forward": HALF}]
    at_once, one_by_one = ExpertUse(config(SIGMA_MOE), CPU), ExpertUse(config(SIGMA_MOE), CPU)
    at_once.add(records)
    monkeypatch.setattr(expert_use, "_TOKENS_AT_A_TIME", 1)
    one_by_one.add(records)
    assert one_by_one.figures(one_by_one.sums()) == at_once.figures(at_once.sums())


def entropy(counts: list[int]) -> float:
    return -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)


def test_records_of_product_keys_are_judged_by_gates_too() -> None:
    """A slot of gate zero is picked but not used; gates 3 : 1 over two of nine slots."""
    use = ExpertUse(config(PEER, repeats=1), CPU)
    gates = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    use.add([{"feed_forward": torch.tensor([[[0, 8], [0, 4]]]), "gates": {"feed_forward": gates}}])
    (visit,) = use.figures(use.sums())["visits"]
    assert (visit["dead"], visit["usage"], visit["gate_usage"]) == (6, 3 / 9, 2 / 9)
    assert visit["unevenness"] == pytest.approx(math.log(9) - entropy([2, 1, 1]))
    assert visit["gate_unevenness"] == pytest.approx(math.log(9) - entropy([3, 1]))


def test_padding_is_no_use() -> None:
    use = ExpertUse(config(SIGMA_MOE), CPU)
    use.add([{"feed_forward": SAME}, {"feed_forward": HALF}], torch.tensor([False, True]))
    assert use.sums()["routes_0"].tolist() == [0, 0, 1, 1, 0, 0]
    assert use.figures(use.sums())["tokens"] == 1
    use.add([{"feed_forward": SAME}, {"feed_forward": HALF}], torch.tensor([False, False]))
    assert use.figures(use.sums())["tokens"] == 1


def test_a_dense_model_has_nothing_to_count() -> None:
    use = ExpertUse(config({"kind": "dense", "d_ff": 8}), CPU)
    use.add([{}, {}])
    assert use.figures(use.sums()) == {"tokens": 0, "visits": [], "layers": []}


def test_only_what_chooses_has_a_row() -> None:
    """Dense, two visits of six experts, top-K of nine units: counts, candidates and places are each one's own."""
    changes = {"depth": {"prelude": 1, "group": 1, "repeats": 2, "coda": 1}}
    changes["feed_forward_at"] = {0: {"kind": "dense", "d_ff": 8}, 2: {"kind": "topk", "d_ff": 9, "top_k": 2}}
    use = ExpertUse(ModelConfig.model_validate({**config(SIGMA_MOE).model_dump(), **changes}), CPU)
    use.add([{}, {"feed_forward": SAME}, {"feed_forward": OTHER}, {"feed_forward": torch.tensor([[8, 7], [8, 6]])}])
    figures = use.figures(use.sums())
    assert [(row["visit"], row["layer"], row["candidates"], row["dead"]) for row in figures["visits"]] == [
        (1, 1, 6, 2),
        (2, 1, 6, 2),
        (3, 2, 9, 6),
    ]
    assert [(row["layer"], row["candidates"], row["dead"]) for row in figures["layers"]] == [(1, 6, 0), (2, 9, 6)]
    assert [row["overlap"] for row in figures["visits"]] == [None, 0.0, None]


@pytest.fixture(scope="module")
def by_hand() -> tuple[list[int], list[list[int]]]:
    """Scored tokens' routes in both visits, a window at a time and so without padding."""
    model = model_for(lone()).eval()
    routes = [[0] * 5, [0] * 5]
    for row in ListedWindows().rows:
        with torch.no_grad():
            records = model(torch.from_numpy(row)[None, :-1]).records
        for visit in (0, 1):
            for expert in records[visit]["feed_forward"].flatten().tolist():
                routes[visit][expert] += 1
    return [sum(row) for row in routes], routes


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_evaluation_counts_every_scored_token(batch: int, by_hand: tuple[list[int], list[list[int]]]) -> None:
    use = ExpertUse(recipe().model, CPU)
    tokens = held_out_loss(model_for(lone()), ListedWindows(), Scoring(batch, use=use), CPU)["tokens"]
    assert [use.sums()[f"routes_{visit}"].tolist() for visit in (0, 1)] == by_hand[1]
    assert use.figures(use.sums())["tokens"] == tokens == (N_WINDOWS - 1) * 8 + 3


@pytest.mark.parametrize(("world", "expert_parallel"), [(2, 1), (2, 2), (3, 3)])
def test_the_ranks_change_nothing(pool: Pool, world: int, expert_parallel: int) -> None:
    use = ExpertUse(recipe().model, CPU)
    held_out_loss(model_for(lone()), ListedWindows(), Scoring(4, use=use), CPU)
    expected = use.figures(use.sums())
    for figures in pool.run(world, "evaluate_work:use_rank", expert_parallel=expert_parallel, batch=3):
        assert figures["tokens"] == expected["tokens"]
        for part in ("visits", "layers"):
            for row, same in zip(figures[part], expected[part], strict=True):
                assert row == pytest.approx(same, rel=1e-12)


def test_slots_with_too_many_candidates_are_left_out() -> None:
    assert ExpertUse(config(PEER), CPU, most=9).candidates == [9, 9]
    assert ExpertUse(config(PEER), CPU, most=8).candidates == [0, 0]
