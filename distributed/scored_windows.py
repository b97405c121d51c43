"""Which held-out windows a figure was scored over: the first so many of every source."""

from __future__ import annotations

ScoredWindows = dict[str, dict[str, int]]
"""By source: how many windows were `scored` of those `held_out`. As summary.json has it."""


def scored_windows(n_windows: dict[str, int], limit: int | None) -> ScoredWindows:
    """Of sources with `n_windows` held-out windows, under `validation.windows` of `limit` (None: all)."""
    return {source: {"scored": n if limit is None else min(n, limit), "held_out": n} for source, n in n_windows.items()}


def windows_words(windows: ScoredWindows) -> str:
    """`first 128 of 499 windows`; of several sources one after the other, whose losses are averaged."""
    if len(windows) == 1:
        return _words(**next(iter(windows.values())))
    return f"mean over {', '.join(f'{source}: {_words(**counts)}' for source, counts in windows.items())}"


def _words(scored: int, held_out: int) -> str:
    return f"all {held_out:,} windows" if scored == held_out else f"first {scored:,} of {held_out:,} windows"
