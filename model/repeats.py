"""How many times the group is repeated in a training step, where that is drawn.

A draw is a pure function of (seed, step): all ranks and micro-batches of a step agree without a word, and a resumed run needs no state.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from model.slot_config import Strict


class SampledRepeats(Strict):
    """Base of the distributions."""

    max: int = Field(ge=1)
    """The most that is drawn."""

    def draw(self, seed: int, step: int) -> int:
        """Repeats of one step."""
        return self._draw(Random(f"repeats:{seed}:{step}"))

    @abstractmethod
    def _draw(self, random: Random) -> int: ...


class UniformRepeats(SampledRepeats):
    """Every number from `min` to `max` equally often."""

    kind: Literal["uniform"] = "uniform"
    min: int = Field(default=1, ge=1)
    """The least that is drawn."""

    @model_validator(mode="after")
    def _in_order(self) -> UniformRepeats:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} but max is {self.max}; choose min <= {self.max}")
        return self

    def _draw(self, random: Random) -> int:
        return random.randint(self.min, self.max)


class PoissonLognormalRepeats(SampledRepeats):
    """1 + Poisson(rate), the rate lognormal (arXiv 2502.05171, section 3.3)."""

    kind: Literal["poisson_lognormal"] = "poisson_lognormal"
    mean: float = Field(gt=1.0, le=500.0)
    """Mean of a draw before what exceeds `max` is cut to it: the rate's mean is `mean` - 1 (the paper's rate has mean r, and its draws
    r + 1)."""
    sigma: float = Field(default=0.5, ge=0.0, le=2.0)
    """Deviation of the rate's logarithm."""

    def _draw(self, random: Random) -> int:
        rate = math.exp(random.gauss(math.log(self.mean - 1) - self.sigma**2 / 2, self.sigma))
        return 1 + _poisson(rate, self.max - 1, random)


def _poisson(rate: float, most: int, random: Random) -> int:
    """A Poisson draw, or `most` if that is less: as many arrivals as fit into a unit of time, waiting times being exponential."""
    time, arrivals = random.expovariate(rate), 0
    while time <= 1.0 and arrivals < most:
        time, arrivals = time + random.expovariate(rate), arrivals + 1
    return arrivals
