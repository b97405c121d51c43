"""Halting slots: whether a token may leave the recurrence before its last repeat, and who decides."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from model.slot_config import Strict


class Computed(NamedTuple):
    """Tokens of a batch that one visit really computed: of queries, outputs and feed-forward; of keys and values; of gates."""

    queries: int
    keys: int
    gates: int


class NoHaltingConfig(Strict):
    """Every token takes every visit."""

    kind: Literal["none"] = "none"

    def parameters(self, d_model: int) -> int:
        return 0

    def macs(self, d_model: int) -> int:
        return 0

    def gates(self, repeats: int) -> int:
        return 0


class StickBreakingConfig(Strict):
    """Stick-breaking halting (SUT, arXiv 2310.07096; code shawntan/SUT @192cbd3): a gate before every repeat but the first."""

    kind: Literal["stick_breaking"] = "stick_breaking"
    threshold: float = Field(default=0.999, gt=0.0, lt=1.0)
    """A token whose probability of having halted passes it is skipped from then on."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout between the gate's two layers."""
    loss_weight: float = Field(default=0.01, ge=0.0)
    """Weight in the loss of the expected number of repeats after the first."""

    def parameters(self, d_model: int) -> int:
        return d_model**2 + d_model + 2 * d_model

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates of one gate for one token."""
        return d_model**2 + 2 * d_model

    def gates(self, repeats: int) -> int:
        """Gates that a token meets which never halts."""
        return repeats - 1


class ActConfig(Strict):
    """Adaptive computation time of the Universal Transformer (arXiv 1807.03819, after arXiv 1603.08983): a gate before every repeat."""

    kind: Literal["act"] = "act"
    output: Literal["accumulated", "basic"] = "accumulated"
    """The states' sum by their weights (`accumulated`), or a running mean of them (`basic`)."""
    epsilon: float = Field(default=0.01, gt=0.0, lt=1.0)
    """A token halts in the repeat that brings the sum of its gates above 1 - `epsilon`, at the latest in the last one."""
    loss_weight: float = Field(default=0.01, ge=0.0)
    """Weight in the loss of repeats taken plus remainder."""

    def parameters(self, d_model: int) -> int:
        return d_model + 1

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates of one gate for one token."""
        return d_model

    def gates(self, repeats: int) -> int:
        """Gates that a token meets which never halts."""
        return repeats
