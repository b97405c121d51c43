"""Held-out loss: the same to the last digits whatever the batch and the ranks, equal to a loop one can believe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_work import N_WINDOWS, ListedWindows, model_for
from metrics_work import lone
from pool import Pool

from distributed.held_out import Scoring, held_out_loss, pad

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def expected() -> dict[int | None, tuple[float, int]]:
    """Summed nats and tokens over the first n windows, one token of one window at a time."""
    model, windows = model_for(lone()).eval(), ListedWindows()
    sums: dict[int | None, tuple[float, int]] = {}
    nats, tokens = 0.0, 0
    for number, row in enumerate(windows.rows, 1):
        with torch.no_grad():
            logits_TV = model(torch.from_numpy(row)[None, :-1]).logits[0]
        for position, target in enumerate(row[1:]):
            nats -= torch.log_softmax(logits_TV[position], 0)[target].item()
            tokens += 1
        sums[number] = (nats, tokens)
    sums[None] = (nats, tokens)
    return sums


def assert_equal(result: dict[str, Any], expected: tuple[float, int]) -> None:
    nats, tokens = expected
    assert result["tokens"] == tokens
    assert result["total_nats"] == pytest.approx(nats, rel=1e-12)
    assert result["nats"] == pytest.approx(nats / tokens, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 3, 4, 11, 64])
def test_the_batch_changes_nothing(batch: int, expected: dict[int | None, tuple[float, int]]) -> None:
    result = held_out_loss(model_for(lone()), ListedWindows(), Scoring(batch), CPU)
    assert_equal(result, expected[None])
    assert result["windows"] == N_WINDOWS


@pytest.mark.parametrize(
    ("world", "expert_parallel", "batch", "max_windows"), [(2, 1, 4, None), (3, 1, 2, 7), (2, 2, 3, None), (3, 3, 4, None), (4, 2, 1, 2)]
)
def test_the_ranks_change_nothing(
    pool: Pool, expected: dict[int | None, tuple[float, int]], world: int, expert_parallel: int, batch: int, max_windows: int | None
) -> None:
    arguments = {"expert_parallel": expert_parallel, "batch": batch, "max_windows": max_windows}
    results = pool.run(world, "evaluate_work:score_rank", **arguments)
    for result in results:
        assert_equal(result, expected[max_windows])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = model_for(lone()).train(training)
    held_out_loss(model, ListedWindows(), Scoring(4), CPU)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_comes_back_after_a_fault() -> None:
    class Broken(ListedWindows):
        def read_ragged(self, ids: Any) -> Any:
            raise OSError

    model = model_for(lone())
    with pytest.raises(OSError):
        held_out_loss(model, Broken(), Scoring(4), CPU)
    assert model.training


def test_no_window_gives_no_loss() -> None:
    result = held_out_loss(model_for(lone()), ListedWindows(), Scoring(4, max_windows=0), CPU)
    assert math.isnan(result["nats"])
    assert result["tokens"] == 0


def test_document_masks_are_those_of_training() -> None:
    """With a mask, what comes before an end of document does not matter to what comes after; without one it does."""
    model = model_for(lone())

    def nats_of_last_token(row: list[int], end_of_document: int | None) -> float:
        sums = [held_out_loss(model, ListedWindows([part]), Scoring(1, end_of_document=end_of_document), CPU) for part in (row, row[:-1])]
        return float(sums[0]["total_nats"] - sums[1]["total_nats"])

    one, other = [7, 8, 0, 3, 4], [9, 5, 0, 3, 4]
    assert nats_of_last_token(one, 0) == pytest.approx(nats_of_last_token(other, 0), rel=1e-9)
    assert nats_of_last_token(one, None) != pytest.approx(nats_of_last_token(other, None), rel=1e-4)


def test_padding_is_not_scored() -> None:
    inputs_BT, targets_BT = pad([np.array([1, 2, 3]), np.array([4, 5])])
    assert inputs_BT.tolist() == [[1, 2], [4, 0]]
    assert targets_BT.tolist() == [[2, 3], [5, -100]]
    assert [tuple(tensor.shape) for tensor in pad([])] == [(0, 1), (0, 1)]
