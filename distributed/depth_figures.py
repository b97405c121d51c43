"""How deep passes went, where that is not fixed: what curves, progress line and summary say of it. Loads no torch."""

from __future__ import annotations

from typing import Any


def depth_figures(figures: dict[str, Any]) -> dict[str, float]:
    """Of an interval's figures; empty for a model whose depth is fixed.

    `repeats`: that a step drew, mean; where tokens may halt, `mean_passes` and `saved_share` (`distributed.halted`).
    """
    depth = {"repeats": figures.get("repeats"), **figures.get("halting", {})}
    return {name: depth[name] for name in ("repeats", "mean_passes", "saved_share") if depth.get(name) is not None}


def depth_over(intervals: list[dict[str, Any]]) -> dict[str, float]:
    """Means of `depth_figures` over lines of metrics.jsonl; each step weighs the same."""
    means = {}
    for name in depth_figures(intervals[-1]):
        having = [(depth_figures(line)[name], line["interval_steps"]) for line in intervals if name in depth_figures(line)]
        means[name] = sum(value * steps for value, steps in having) / sum(steps for _, steps in having)
    return means


def depth_words(figures: dict[str, Any]) -> str:
    """A few words on an interval, with two spaces before each; none for a model whose depth is fixed."""
    depth = depth_figures(figures)
    drawn = f"  {depth['repeats']:.1f} repeats" if "repeats" in depth else ""
    return drawn + (f"  {depth['mean_passes']:.2f} passes, {depth['saved_share']:.0%} saved" if "mean_passes" in depth else "")
