"""Feed-forward slots that compute all their hidden units: the dense layer, and top-K activation of one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.slot_config import Count, FeedForwardSlot


class DenseFeedForwardConfig(FeedForwardSlot):
    """Two dense layers with ReLU and biases: the parameter-matched baseline."""

    params_knobs = ("d_ff",)
    macs_knobs = ("d_ff",)
    kind: Literal["dense"] = "dense"
    d_ff: int = Field(ge=1)
    """Hidden units."""

    def parameters(self, d_model: int) -> Count:
        count = 2 * d_model * self.d_ff + self.d_ff + d_model
        return Count(count, count)

    def macs(self, d_model: int, exact: bool) -> int:
        return 2 * d_model * self.d_ff


class TopKConfig(FeedForwardSlot):
    """The dense slot with only the K largest hidden units of a token kept (arXiv 2310.10837 eq. 6-7)."""

    params_knobs = ("d_ff",)
    macs_knobs = ("d_ff",)
    kind: Literal["topk"] = "topk"
    d_ff: int = Field(ge=1)
    """Hidden units, all of which are computed."""
    top_k: int = Field(ge=1)
    """Hidden units that a token keeps."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> TopKConfig:
        if self.top_k > self.d_ff:
            raise ValueError(f"top_k is {self.top_k} but there are {self.d_ff} hidden units; choose top_k <= {self.d_ff}")
        return self

    @property
    def candidates(self) -> int:
        return self.d_ff

    def parameters(self, d_model: int) -> Count:
        up, biases = d_model * self.d_ff, self.d_ff + d_model
        return Count(2 * up + biases, up + self.top_k * d_model + biases)

    def macs(self, d_model: int, exact: bool) -> int:
        """Of two dense products, which is how it runs."""
        return 2 * d_model * self.d_ff
