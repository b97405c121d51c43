"""Forms of one piece of work tried, compared and timed: rows of a table, also for those that cannot run."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple, cast

import torch

from benchmarks.results import figure
from benchmarks.rivals import reason
from benchmarks.timing import Form, measure, peak_bytes, ratio
from cluster.markdown import line

HEADER = ["work", "form", "ms", "over dense", "peak GB", "of floor", "note"]
OURS, DENSE = "ours", "dense"


class Comparison(NamedTuple):
    """Seconds of every round, bytes above what was there, and what is to be said, by form; `times` lacks what could not run."""

    times: dict[str, list[float]]
    peaks: dict[str, int | None]
    notes: dict[str, str]

    def over(self, form: str, other: str) -> float | None:
        """Median of the rounds' ratios; None where one of them is missing."""
        return ratio(self.times[form], self.times[other]) if {form, other} <= set(self.times) else None


def compare(forms: dict[str, Form], rounds: int, device: str, reasons: dict[str, str] | None = None) -> Comparison:
    """Run each form once, set its gradients against ours, then time those that ran; `reasons` are of forms that could not be made."""
    notes = dict(reasons or {})
    running = {}
    ours: Any = None
    for name, form in forms.items():
        try:
            found = form()
        except Exception as fault:  # another project's code, a shape that torch does not take, or too little memory
            if name == OURS:
                raise
            notes[name] = reason(fault)
            continue
        ours, running[name] = (found if name == OURS else ours), form
        if name not in (OURS, DENSE):
            notes[name] = f"differs by {relative_error(found, ours):.1e}"
        del found
    del ours
    peaks = {name: peak_bytes(form, device) for name, form in running.items()}
    return Comparison(measure(running, rounds, device), peaks, notes)


def relative_error(found: Any, ours: Any) -> float:
    """Of the gradient that differs most: norm of the difference over the norm of ours."""
    pairs = zip(cast(tuple[torch.Tensor, ...], found), cast(tuple[torch.Tensor, ...], ours), strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def show(work: str, compared: Comparison, floor: float | None) -> str:
    """Rows below `HEADER`, one a form: medians, ratios, and how near ours comes to `floor` seconds."""
    rows = []
    for name in [*compared.times, *(name for name in compared.notes if name not in compared.times)]:
        seconds = statistics.median(compared.times[name]) if name in compared.times else None
        peak = compared.peaks.get(name)
        rows.append(
            [
                work,
                name,
                figure(seconds and 1e3 * seconds, ".3f"),
                figure(compared.over(name, DENSE), ".2f"),
                figure(None if peak is None else peak / 1e9, ".2f"),
                figure(floor / seconds if floor and seconds and name == OURS else None, ".0%"),
                compared.notes.get(name, ""),
            ]
        )
    return "\n".join(map(line, rows))
