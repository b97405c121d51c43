"""Depth, as data: which layer is visited when, and what the visits of a layer have for themselves."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from model.repeats import PoissonLognormalRepeats, UniformRepeats
from model.slot_config import Strict

Sample = Annotated[UniformRepeats | PoissonLognormalRepeats, Field(discriminator="kind")]
Positive = Annotated[float, Field(gt=0.0)]


class Place(NamedTuple):
    """A visit's place in the depth schedule: `layer` for the `repeat`-th time, counted from 0.

    `number` is the same whatever the repeats of a pass: it counts the visits of `most_repeats`, and then those beyond.
    """

    number: int
    layer: int
    repeat: int


class DepthConfig(Strict):
    """Depth as a schedule: prelude layers, then `group` distinct layers `repeats` times, then coda layers.

    A plain transformer is `group: L, repeats: 1`.
    """

    prelude: int = Field(default=0, ge=0)
    """Layers before the group, visited once."""
    group: int = Field(default=2, ge=1)
    """Distinct layers that are repeated (G)."""
    repeats: int = Field(default=8, ge=1)
    """How often the group is repeated (R); with `sample`, in validation and generation."""
    coda: int = Field(default=0, ge=0)
    """Layers behind the group, visited once."""
    order: Literal["cycle", "loop"] = "cycle"
    """`cycle` (ABAB..., the paper's) or `loop` (AABB...)."""
    sample: Sample | None = None
    """Let every training step draw its own number of repeats; null: always `repeats`."""
    per_visit: tuple[Literal["router", "norm", "embedding", "residual_scale"], ...] = ()
    """What every visit of a layer of the group has for itself. `router`: the weights of its routers (of two-layer ones the second;
    biases of balance stay shared); `norm`: gains and biases of its two norms; `embedding`: a vector added to the stream it is given, as
    in the Universal Transformer (arXiv 1807.03819), here learned and zero at first; `residual_scale`: a learned number that starts at
    the field of that name."""
    residual_scale: Positive | Literal["1/R", "1/sqrt(R)"] = 1.0
    """Factor, in the group, of what attention and feed-forward add to the stream; R is the repeats of the pass."""
    backprop_repeats: int | None = Field(default=None, ge=1)
    """Only the last so many visits of a layer of the group have gradients; an earlier one counts as a constant added to the stream,
    which goes on carrying gradients to what comes before. null: all have."""

    @model_validator(mode="after")
    def _trained_for_its_repeats(self) -> DepthConfig:
        if self.sample is not None and self.repeats > self.sample.max:
            raise ValueError(f"repeats is {self.repeats} but sample.max is {self.sample.max}; choose repeats <= {self.sample.max}")
        return self

    @model_validator(mode="after")
    def _gradients_are_cut(self) -> DepthConfig:
        if self.backprop_repeats is not None and self.backprop_repeats > self.most_repeats:
            raise ValueError(
                f"backprop_repeats is {self.backprop_repeats} but a pass makes at most {self.most_repeats} repeats; "
                f"choose backprop_repeats <= {self.most_repeats}, or leave it out"
            )
        return self

    @property
    def n_layers(self) -> int:
        """Distinct layers, which is how many sets of weights there are."""
        return self.prelude + self.group + self.coda

    @property
    def n_visits(self) -> int:
        """Unrolled depth at `repeats`: how many times some layer is applied to a token."""
        return len(self.schedule())

    @property
    def most_repeats(self) -> int:
        """The most that a pass of training, validation or generation makes: what there are parameters of visits for."""
        return self.repeats if self.sample is None else self.sample.max

    def repeats_of_step(self, seed: int, step: int) -> int:
        """Repeats of a training step, the same wherever and however often it is asked."""
        return self.repeats if self.sample is None else self.sample.draw(seed, step)

    def is_repeated(self, layer: int) -> bool:
        """Whether a layer belongs to the group."""
        return self.prelude <= layer < self.prelude + self.group

    def is_constant(self, layer: int, repeat: int, repeats: int) -> bool:
        """Whether a visit of a pass is made without gradients."""
        return self.backprop_repeats is not None and self.is_repeated(layer) and repeat < repeats - self.backprop_repeats

    def schedule(self, repeats: int | None = None) -> list[int]:
        """Layer number of every visit, in order; None: at `repeats`."""
        return [layer for layer, _ in self._order(repeats or self.repeats)]

    def visits(self, repeats: int | None = None) -> list[Place]:
        """The visits of a pass, in order; None: at `repeats`."""
        numbers = {visit: number for number, visit in enumerate(self._order(self.most_repeats))}
        return [Place(numbers.setdefault(visit, len(numbers)), *visit) for visit in self._order(repeats or self.repeats)]

    def layers_by_number(self, repeats: int | None = None) -> list[int]:
        """The layer of every visit that has a row in such a table."""
        layers = [0] * self.n_numbers(repeats)
        for most in (self.most_repeats, repeats or self.most_repeats):
            for number, layer, _ in self.visits(most):
                layers[number] = layer
        return layers

    def made(self, repeats: int | None = None) -> list[bool]:
        """By number: whether a pass makes the visit."""
        numbers = {visit.number for visit in self.visits(repeats)}
        return [number in numbers for number in range(self.n_numbers(repeats))]

    def n_numbers(self, repeats: int | None = None) -> int:
        """Rows of a table that visits of `most_repeats`, and of a pass of `repeats`, find by their number."""
        return self.prelude + self.group * max(self.most_repeats, repeats or 1) + self.coda

    def _order(self, repeats: int) -> list[tuple[int, int]]:
        """(layer, repeat) of every visit."""
        group, last = range(self.prelude, self.prelude + self.group), range(self.prelude + self.group, self.n_layers)
        if self.order == "cycle":
            body = [(layer, repeat) for repeat in range(repeats) for layer in group]
        else:
            body = [(layer, repeat) for layer in group for repeat in range(repeats)]
        return [(layer, 0) for layer in range(self.prelude)] + body + [(layer, 0) for layer in last]
