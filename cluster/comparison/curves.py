"""Loss curves of a run from its metrics.jsonl, and their mean over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

Points = dict[int, float]
"""A figure by step."""


@dataclass(frozen=True)
class RunCurves:
    """Nats a token by step, held out and in training (mean of a logging interval); seconds and multiply-accumulates of training so far."""

    held_out: Points
    train: Points
    seconds: Points
    macs: Points


@dataclass(frozen=True)
class Band:
    """A curve over seeds: mean, lowest and highest at every place of the horizontal axis."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def read_curves(lines: list[dict[str, Any]]) -> RunCurves:
    """Curves of metrics.jsonl. Seconds and multiply-accumulates are those of steps: validation, checkpoints and stops are left out."""
    held_out: Points = {}
    train: Points = {}
    seconds: Points = {0: 0.0}
    macs: Points = {0: 0.0}
    for line in lines:
        if "held_out" in line:
            losses = list(line["held_out"].values())
            if losses and None not in losses:
                held_out[line["step"]] = mean(losses)
        elif line.get("interval_steps"):
            seconds[line["step"]] = max(seconds.values()) + line["step_seconds"] * line["interval_steps"]
            macs[line["step"]] = max(macs.values()) + line["flops"] / 2
            if line["loss"] is not None:
                train[line["step"]] = line["loss"]
    return RunCurves(held_out, train, seconds, macs)


def figure_at(points: Points, step: int) -> float | None:
    """Between two logged steps in proportion; None past the last one."""
    before = max((at for at in points if at <= step), default=None)
    after = min((at for at in points if at >= step), default=None)
    if before is None or after is None:
        return None
    share = 0.0 if after == before else (step - before) / (after - before)
    return points[before] + share * (points[after] - points[before])


def over_steps(curves: list[Points], per_step: float) -> Band:
    """Over steps times `per_step` (tokens), where every seed has a point."""
    steps = common_steps(curves)
    return _band([step * per_step for step in steps], [[curve[step] for step in steps] for curve in curves])


def over_figure(curves: list[Points], figures: list[Points]) -> Band:
    """Over what the seeds had spent on average (seconds, multiply-accumulates)."""
    spent: dict[int, float] = {}
    for step in common_steps(curves):
        at = [figure_at(points, step) for points in figures]
        known = [one for one in at if one is not None]
        if len(known) == len(figures):
            spent[step] = mean(known)
    return _band(list(spent.values()), [[curve[step] for step in spent] for curve in curves])


def common_steps(curves: list[Points]) -> list[int]:
    """Steps at which all curves have a point, ascending."""
    return sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []


def _band(x: list[float], rows: list[list[float]]) -> Band:
    columns = list(zip(*rows, strict=True)) if rows else []
    return Band(x, [mean(column) for column in columns], [min(column) for column in columns], [max(column) for column in columns])
