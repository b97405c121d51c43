"""Learning rates: the paper's figures, and the corners of each schedule."""

from __future__ import annotations

import pytest

from distributed.schedule import learning_rate
from distributed.train_config import ScheduleConfig, TrainConfig


def config(steps: int, lr: float, **schedule: object) -> TrainConfig:
    return TrainConfig(steps=steps, global_batch=1, micro_batch=1, lr=lr, schedule=ScheduleConfig.model_validate(schedule))


def test_paper_cosine_stops_at_96_percent() -> None:
    paper = config(100_000, 2.5e-4, kind="cosine", warmup_steps=4000, decay_steps=100_000)
    assert learning_rate(99_999, paper) == pytest.approx(2.5887e-5, rel=1e-5)
    assert learning_rate(3999, paper) == 2.5e-4
    assert learning_rate(4000, paper) == pytest.approx(2.5e-4, rel=1e-9)
    assert learning_rate(0, paper) == pytest.approx(2.5e-4 / 4000)
    without = config(100_000, 2.5e-4, kind="cosine")
    assert learning_rate(99_999, without) == pytest.approx(2.5e-5)
    assert learning_rate(0, without) == pytest.approx(2.5e-4)


def test_cosine_stays_at_its_floor() -> None:
    train = config(50, 1.0, kind="cosine", decay_steps=10, final_fraction=0.2)
    assert learning_rate(4, train) == pytest.approx(0.6)
    assert [learning_rate(step, train) for step in (9, 10, 49)] == pytest.approx([0.2] * 3)


def test_wsd_is_flat_then_falls_over_the_last_steps() -> None:
    train = config(100, 1.0, kind="wsd", warmup_steps=10, decay_steps=20, final_fraction=0.1)
    assert [learning_rate(step, train) for step in (4, 9, 10, 79)] == [0.5, 1.0, 1.0, 1.0]
    assert learning_rate(89, train) == pytest.approx(0.55)
    assert learning_rate(99, train) == pytest.approx(0.1)


def test_constant() -> None:
    train = config(100, 0.3, kind="constant", warmup_steps=3)
    assert [learning_rate(step, train) for step in (0, 2, 3, 99)] == pytest.approx([0.1, 0.3, 0.3, 0.3])
