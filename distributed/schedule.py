"""The learning rate of every step: a pure function, so a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from distributed.train_config import ScheduleConfig, TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Warm-up is linear and its last step has the full rate; the run's last step has what its schedule ends at. `cosine`
    counts from the end of warm-up, so the paper's recipe (decay_steps = steps = 100,000, warm-up 4,000) stops at 96% of
    its cosine, at 2.5887e-5 (arXiv 2405.16039, appendix A.4).
    """
    number, schedule = step + 1, train.schedule
    if number <= schedule.warmup_steps:
        return train.lr * number / schedule.warmup_steps
    return train.lr * _fraction_after_warmup(number, schedule, train.steps)


def _fraction_after_warmup(number: int, schedule: ScheduleConfig, steps: int) -> float:
    """Share of the peak rate at step `number`, counted from 1. `wsd` decays over a fifth of the run unless told."""
    floor = schedule.final_fraction
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "cosine":
        progress = min(1.0, (number - schedule.warmup_steps) / (schedule.decay_steps or steps))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    decay_steps = schedule.decay_steps or max(1, steps // 5)
    progress = min(1.0, max(0.0, (number - (steps - decay_steps)) / decay_steps))
    return 1.0 - (1.0 - floor) * progress
