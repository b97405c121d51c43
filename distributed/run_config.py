"""What is recorded, saved and watched beside training, as data."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from model.slot_config import Strict


class RouterConfig(Strict):
    """Recording and replaying of expert choices, and what statistics of routing may be of."""

    replay: Literal["off", "record", "use"] = "off"
    """`record` writes every expert choice of the run; `use` takes them from `choices`."""
    choices: str | None = None
    """The run whose recorded choices are used."""
    allow_micro_batch_scope: bool = False
    """Allow statistics of routing to be of a micro-batch although the run may change its workers, and with them what a micro-batch is."""

    @model_validator(mode="after")
    def _choices_given(self) -> RouterConfig:
        if self.replay == "use" and not self.choices:
            raise ValueError("router.replay is 'use': router.choices must name the run whose expert choices to take")
        return self


class CheckpointConfig(Strict):
    """When checkpoints are written, where, and which are kept."""

    every: int = Field(default=100, ge=1)
    """Steps from one checkpoint to the next; there is one at the end too."""
    keep_last: int = Field(default=2, ge=1)
    """How many of the newest are kept."""
    keep_every: int | None = Field(default=None, ge=1)
    """Keep those of every so many steps as well; null: none."""
    asynchronous: bool = True
    """Go on training while a checkpoint is written."""
    address: str | None = None
    """Where, as an fsspec address (file:///data, s3://bucket/prefix), below which each run has a folder of its name; null: the run's
    folder."""

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        if address is not None and not re.match(r"[a-z0-9+.\-]+://.", address):
            raise ValueError("must be an address such as file:///data/checkpoints or s3://bucket/prefix")
        return address


class ValidationConfig(Strict):
    """Held-out loss during training."""

    every: int = Field(default=100, ge=1)
    """Steps from one validation to the next."""
    windows: int | None = Field(default=None, ge=1)
    """The first so many held-out windows of every source; null: all of them."""
    batch: int = Field(default=16, ge=1)
    """Windows computed at once."""


class LoggingConfig(Strict):
    """How often figures are reduced over the ranks and written."""

    every: int = Field(default=10, ge=1)
    """Steps from one line of figures to the next."""
    heat_maps_every: int = Field(default=100, ge=1)
    """Steps from one picture of expert use to the next."""


class GuardConfig(Strict):
    """When a run is in trouble, and what is done."""

    not_finite_in_a_row: int = Field(default=10, ge=1)
    """So many steps in a row whose gradient is not finite are trouble; each is skipped."""
    spike_nats: float | None = Field(default=None, gt=0.0)
    """A loss so far above the median of the last steps is trouble when it lasts; null: not looked at."""
    spike_steps: int = Field(default=3, ge=1)
    """How many steps in a row it must last."""
    spike_window: int = Field(default=50, ge=10)
    """Steps that the median is taken over."""
    action: Literal["stop", "roll_back"] = "stop"
    """`stop` the run, or `roll_back` to the last checkpoint before and leave the samples of those steps out."""
    max_roll_backs: int = Field(default=3, ge=1)
    """Most roll-backs of a run."""
