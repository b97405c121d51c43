"""Depth, as data: which layer is visited when."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.slot_config import Strict


class DepthConfig(Strict):
    """Depth as a schedule: prelude layers, then `group` distinct layers `repeats` times, then coda layers.

    `order` is `cycle` (ABAB..., the paper's) or `loop` (AABB...). A plain transformer is `group: L, repeats: 1`.
    """

    prelude: int = Field(default=0, ge=0)
    group: int = Field(default=2, ge=1)
    repeats: int = Field(default=8, ge=1)
    coda: int = Field(default=0, ge=0)
    order: Literal["cycle", "loop"] = "cycle"

    @property
    def n_layers(self) -> int:
        """Distinct layers, which is how many sets of weights there are."""
        return self.prelude + self.group + self.coda

    @property
    def n_visits(self) -> int:
        """Unrolled depth: how many times some layer is applied to a token."""
        return self.prelude + self.group * self.repeats + self.coda

    def schedule(self) -> list[int]:
        """Layer number of every visit, in order."""
        first = self.prelude
        body = list(range(first, first + self.group))
        loop = [layer for layer in body for _ in range(self.repeats)]
        visits = body * self.repeats if self.order == "cycle" else loop
        return list(range(first)) + visits + list(range(first + self.group, self.n_layers))
