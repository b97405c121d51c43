"""Every kind of routed experts and of balance over ranks and micro-batches against one process, float64: within 1e-12 of the maximum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pool import Pool
from step_balance_work import ALONE, run_whole
from tiny_models import KINDS, relative, tiny_model, tiny_tokens

from distributed.step_balance import StepBalance
from distributed.step_moves import StepMoves

ROUTED = ["switch", "s_base", "softmax_renormalised", "two_layer_router", "bias", "dense_ends_sampled"]


@pytest.mark.parametrize("kind", ROUTED)
@pytest.mark.parametrize(
    ("share", "micro_batches", "expert_parallel", "recompute"),
    [((4,), 3, 1, "none"), ((2, 1), 1, 1, "none"), ((2, 1), 2, 2, "visit"), ((1, 0, 2, 1), 2, 4, "none")],
)
def test_a_step_is_that_of_one_process(
    pool: Pool, share: tuple[int, ...], micro_batches: int, expert_parallel: int, recompute: str, kind: str
) -> None:
    """Unequal shares, empty micro-batches, experts here or spread."""
    how: dict[str, Any] = {"micro_batches": micro_batches, "expert_parallel": expert_parallel, "recompute": recompute, "kind": kind}
    answers = pool.run(len(share), "step_balance_work:run_share", share=share, **how)
    whole = run_whole(sum(share), kind)
    assert relative(torch.cat([answer["logits"] for answer in answers]), whole["logits"]) <= 1e-12
    assert sum(answer["balance"] for answer in answers) == pytest.approx(whole["balance"], rel=1e-12, abs=1e-15)
    for name, expected in whole["gradients"].items():
        if name in answers[0]["first"]:
            found = torch.cat([answer["gradients"][name] for answer in sorted(answers, key=lambda answer: answer["first"][name])])
        else:
            found = sum(answer["gradients"][name] for answer in answers)
        assert found.shape == expected.shape and relative(found, expected) <= 1e-12, name
    for answer in answers:
        assert answer["buffers"].keys() == whole["buffers"].keys()
        assert all(torch.equal(answer["buffers"][name], buffer) for name, buffer in whole["buffers"].items())
    assert kind != "bias" or all(buffer.abs().max() == 1 for buffer in whole["buffers"].values())


def test_only_what_needs_it_is_measured_first() -> None:
    ahead = {kind: StepBalance(tiny_model(**KINDS[kind]), ALONE).looks_ahead(2) for kind in ["peri", "dense", *ROUTED]}
    assert [kind for kind, looks in ahead.items() if looks] == ["switch", "softmax_renormalised", "two_layer_router", "dense_ends_sampled"]
    assert not StepBalance(tiny_model(**KINDS["switch"]), ALONE).looks_ahead(1)


def test_a_skipped_step_moves_no_bias_and_leaves_no_load() -> None:
    model = tiny_model(**KINDS["bias"])
    moves, untouched = StepMoves(model, ALONE), {name: buffer.clone() for name, buffer in model.named_buffers()}
    moves.observe(model(tiny_tokens(2)))
    moves.finish(skipped=True)
    assert all(torch.equal(buffer, untouched[name]) for name, buffer in model.named_buffers())
    even = model(tiny_tokens(0))  # no routes: every expert is at the mean
    moves.observe(even)
    moves.finish(skipped=False)
    assert all(torch.equal(buffer, untouched[name]) for name, buffer in model.named_buffers())


def test_biases_move_by_their_own_layers_visits() -> None:
    """Layers 1 and 2 have experts, twice each in turn, between a dense layer and top-K, whose choices are no routes."""
    model = tiny_model(**{**KINDS["dense_ends"], "feed_forward": KINDS["bias"]["feed_forward"]})
    moves = StepMoves(model, ALONE)
    output = model(tiny_tokens(2))
    moves.observe(output)
    moves.finish(skipped=False)
    expected = {}
    for layer in (1, 2):
        total_E = torch.stack(output.loads)[layer - 1 :: 2].sum(dim=0)
        expected[f"layers.{layer}.feed_forward.router.bias_steps"] = (total_E.sum() - 7 * total_E).sign().tolist()
    assert {name: buffer.tolist() for name, buffer in model.named_buffers()} == expected


def test_the_choices_of_the_first_forward_are_kept_in_order() -> None:
    model = tiny_model(feed_forward={**KINDS["softmax_renormalised"]["feed_forward"], "expert_dropout": 0.5}).train()
    balance = StepBalance(model, ALONE)
    first = [model(row_BT) for row_BT in tiny_tokens(2).split(1)]
    balance.measure(iter(first))
    for output in first:
        kept = balance.next_records()
        assert kept is not None
        for record, made in zip(kept, output.records, strict=True):
            assert record.keys() == {"feed_forward", "attention.value", "attention.output"}
            assert torch.equal(record["feed_forward"], made["feed_forward"])
    assert balance.next_records() is None
    for key, mean_MC in (balance.means or {}).items():  # per sequence, of as many as there were
        assert relative(mean_MC, sum(output.step_sums[key] for output in first) / 2) <= 1e-12
