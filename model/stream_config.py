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

    `altup` widens embedding and head as many times as there are streams; `recycled_altup` keeps those of one stream.
    """

    kind: Literal["altup", "recycled_altup"]
    streams: int = Field(default=2, ge=2)
    """Residual streams (K)."""
    block: Literal["alternating", "by_visit", "same"] = "alternating"
    """The stream that a visit computes. `same`: always the first; `by_visit`: the visit's number mod K; `alternating`: the layer's
    number plus how often it was visited before, mod K."""
    compute_input: Literal["old", "predicted"] = "old"
    """Whether a visit's layer reads its stream as it was (`old`, the paper) or as `predicted` (Gemma 3n)."""
    coefficients: Literal["visit", "layer"] = "visit"
    """Whether every `visit` has its own coefficients, or the visits of a `layer` share them."""
    routed: bool = False
    """Let coefficients depend on the token (Gemma 3n); false: the same for all (the paper)."""
