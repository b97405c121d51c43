"""From what an interval left behind to the figures a person reads. Plain functions on the host; nothing is measured here.

Shape suffixes: V visits with routed experts, E experts, W ranks of the world, P parts of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distributed.clock import PARTS, STEP_PARTS
from distributed.depth_figures import depth_over
from distributed.load import dead_share, imbalance, never_used_share, routing_entropy, unevenness


@dataclass(frozen=True)
class Interval:
    """Sums over the ranks for the steps since the last logging.

    `repeats` (None where no step draws its own), and `flops` as if no token halted, are summed over the steps as they were made.
    `loss` and `balance` are summed over the steps that were not skipped; `seconds_WP` has the order of `PARTS`;
    `damaged` windows could not be read and were left out; `use` are the figures of `ExpertUse` for the last micro-batch of every rank.
    """

    steps: int
    skipped: int
    damaged: int
    tokens: int
    repeats: int | None
    flops: float
    loss: float
    balance: float
    grad_norms: list[float]
    lr: float
    seconds_WP: Tensor
    tokens_W: Tensor
    host_bytes_W: Tensor
    device_bytes_W: Tensor
    peak_flops_W: Tensor
    loads_VE: Tensor
    routes_WV: Tensor
    halting: dict[str, float]
    use: dict[str, Any]


def interval_figures(interval: Interval, routed: dict[int, int]) -> dict[str, Any]:
    """Everything about an interval that needs no memory of earlier ones.

    Args:
        interval: the sums.
        routed: number -> layer of the visits with routed experts, the rows of `loads_VE`.

    Returns:
        Plain values. Times are seconds a step, mean over ranks: `parts` add up to all time of the interval,
        `step_seconds` is what remains without validation and checkpoints, and rates refer to it. `flops` are operations of all
        steps of the interval, forward and backward, without those that halted tokens saved.
    """
    steps = max(interval.steps, 1)
    parts = dict(zip(PARTS, (interval.seconds_WP.mean(dim=0) / steps).tolist(), strict=True))
    step_seconds = sum(parts[name] for name in STEP_PARTS)
    tokens_per_second = interval.tokens / (step_seconds * steps) if step_seconds > 0 else 0.0
    counted = interval.steps - interval.skipped
    loss = interval.loss / counted if counted else math.nan
    if interval.damaged:  # the sum was divided by the tokens that the steps should have had
        loss *= interval.tokens / interval.tokens_W.sum().item()
    peak = interval.peak_flops_W.sum().item()
    executed = interval.flops * (1 - interval.halting.get("saved_share", 0.0))
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "balance_loss": interval.balance / counted if counted else math.nan,
        "lr": interval.lr,
        "grad_norm": _mean(interval.grad_norms),
        "grad_norm_max": max(interval.grad_norms, default=math.nan),
        "interval_steps": interval.steps,
        "skipped_steps": interval.skipped,
        "damaged_windows": interval.damaged,
        "tokens": interval.tokens,
        "repeats": None if interval.repeats is None else interval.repeats / steps,
        "flops": executed,
        "tokens_per_second": tokens_per_second,
        "step_seconds": step_seconds,
        "model_flop_use": executed / (step_seconds * steps) / peak if peak > 0 and step_seconds > 0 else math.nan,
        "parts": parts,
        "compute_seconds_by_rank": _compute_seconds(interval.seconds_WP),
        "token_imbalance": imbalance(interval.tokens_W).item(),
        "host_bytes_max": int(interval.host_bytes_W.max().item()),
        "device_bytes_max": int(interval.device_bytes_W.max().item()),
        "halting": interval.halting,
        "load": load_figures(interval.loads_VE, interval.routes_WV, routed),
        "use": use_figures(interval.use),
    }


def whole_run(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed, parts and depth over all intervals of metrics.jsonl (each step weighs the same); empty before the first."""
    intervals = [line for line in lines if line.get("interval_steps")]
    if not intervals:
        return {}
    steps = [line["interval_steps"] for line in intervals]
    parts = {name: sum(line["parts"][name] * n for line, n in zip(intervals, steps, strict=True)) / sum(steps) for name in PARTS}
    step_seconds = sum(parts[name] for name in STEP_PARTS)
    tokens = sum(line["tokens"] for line in intervals)
    seconds = [line["step_seconds"] * n for line, n in zip(intervals, steps, strict=True)]
    uses = [(line["model_flop_use"], time) for line, time in zip(intervals, seconds, strict=True) if line["model_flop_use"] is not None]
    return {
        "parts": parts,
        "step_seconds": step_seconds,
        "tokens_per_second": tokens / sum(seconds) if sum(seconds) > 0 else None,
        "model_flop_use": sum(use * time for use, time in uses) / sum(time for _, time in uses) if uses else None,
        "depth": depth_over(intervals),
    }


def load_figures(loads_VE: Tensor, routes_WV: Tensor, routed: dict[int, int]) -> dict[str, Any]:
    """Expert load in numbers, empty for a model without experts.

    Means are over visits that had routes: with sampled repeats the last ones may not have been made. Visits and layers without routed
    experts count nowhere. `*_by_visit` are by the visit's number, the keys of `routed`.
    `dead_share`: experts that got no route in a visit, mean over visits; `never_used_share`: in no visit of their layer.
    `unevenness`: KL of routes to uniform, nats, mean over visits.
    `rank_imbalance`: routes on the busiest rank over the mean rank, mean over visits (each visit waits for its busiest).
    """
    if loads_VE.numel() == 0:
        return {}
    dead_V = dead_share(loads_VE)
    entropy_V = routing_entropy(loads_VE)
    ranks_V = imbalance(routes_WV)
    uneven_V = [unevenness(loads_E) for loads_E in loads_VE]
    made_V = loads_VE.sum(dim=1) > 0
    return {
        "dead_share": dead_V[made_V].mean().item(),
        "never_used_share": never_used_share(loads_VE, list(routed.values())),
        "routing_entropy": entropy_V[made_V].mean().item(),
        "unevenness": _mean([value for value, made in zip(uneven_V, made_V.tolist(), strict=True) if made]),
        "expert_imbalance": imbalance(loads_VE.T)[made_V].mean().item(),
        "rank_imbalance": ranks_V[made_V].mean().item(),
        "dead_share_by_visit": dict(zip(routed, dead_V.tolist(), strict=True)),
        "routing_entropy_by_visit": dict(zip(routed, entropy_V.tolist(), strict=True)),
        "unevenness_by_visit": dict(zip(routed, uneven_V, strict=True)),
        "rank_imbalance_by_visit": dict(zip(routed, ranks_V.tolist(), strict=True)),
    }


def use_figures(use: dict[str, Any]) -> dict[str, Any]:
    """What only the choices of tokens tell, of one micro-batch a rank: means over the visits and layers that have the figure.

    `overlap` with the visit before and `path_diversity` (`distributed.visit_overlap`); `gate_usage` and `gate_unevenness` of slots that
    keep gates, which over so few tokens read too low and too high: for comparisons over time. `eval --experts` is exact.
    """
    figures: dict[str, Any] = {}
    for name, place in (("overlap", "visit"), ("gate_usage", "visit"), ("gate_unevenness", "visit"), ("path_diversity", "layer")):
        values = {row[place]: row[name] for row in use[f"{place}s"] if row[name] is not None}
        if values:
            figures |= {name: _mean(list(values.values())), f"{name}_by_{place}": values}
    return figures


def perplexity(nats: float) -> float:
    """exp(nats); infinite where that is beyond a float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def finite(values: Any) -> Any:
    """The same nested figures with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _compute_seconds(seconds_WP: Tensor) -> list[float]:
    """Seconds that each rank spent on its own work in forward passes, which waits for nobody: what a straggler is known by."""
    own = [PARTS.index(name) for name in ("forward", "attention", "experts")]
    return [round(seconds, 4) for seconds in seconds_WP[:, own].sum(dim=1).tolist()]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
