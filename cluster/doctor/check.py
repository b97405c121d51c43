"""A finding about this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Check:
    """`fault`: training will not work; `warning`: it may not, or will be slow. `mend` says what to do about either."""

    name: str
    level: Level
    found: str
    mend: str = ""


def at_least(name: str, amount: float, fault_below: float, warning_below: float, found: str, mend: str) -> Check:
    """A Check of an amount against two limits."""
    if amount < fault_below:
        return Check(name, "fault", found, mend)
    if amount < warning_below:
        return Check(name, "warning", found, mend)
    return Check(name, "ok", found)
