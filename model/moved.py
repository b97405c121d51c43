"""State that is no parameter and moves once a step, by sums over all of its micro-batches and ranks.

A module never changes such a buffer in a forward: a forward may run twice (recomputation, looking ahead) and sees one rank. It leaves the
sums of a visit in the record; who runs the step adds them up and calls `move`, so that all ranks hold equal buffers.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from model.router import Record


class Moved(nn.Module):
    """A module with buffers that move between steps."""

    @property
    def moves(self) -> bool:
        """Whether it has such buffers, as it is configured."""
        return True

    @abstractmethod
    def told_by(self, record: Record) -> Tensor:
        """The sums that a visit left in its record; always of one shape."""

    @abstractmethod
    def move(self, total: Tensor) -> None:
        """Take what `told_by` gave, summed over a step's visits of this layer, micro-batches and ranks: float64, on the host."""
