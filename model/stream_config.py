"""Residual streams, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.slot_config import Strict


class SingleStreamConfig(Strict):
    """The ordinary residual stream."""

    kind: Literal["single"] = "single"


class AltUpConfig(Strict):
    """Alternating updates (arXiv 2301.13310): K residual streams, of which a visit's layer computes one.

    `altup` widens embedding and head K times; `recycled_altup` keeps those of one stream. `block` chooses the stream a
    visit computes (`model.streams.active_stream`), `compute_input` whether its layer reads the stream as it was (the
    paper) or as predicted (Gemma 3n), `coefficients` whether every visit has its own or the visits of a layer share them, `routed`
    whether they depend on the token (Gemma 3n) or are the same for all (the paper).
    """

    kind: Literal["altup", "recycled_altup"]
    streams: int = Field(default=2, ge=2)
    block: Literal["alternating", "by_visit", "same"] = "alternating"
    compute_input: Literal["old", "predicted"] = "old"
    coefficients: Literal["visit", "layer"] = "visit"
    routed: bool = False
