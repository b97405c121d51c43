"""Where the part of a parameter held here lies in its global tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A block of a global tensor: `offset` and `shape` have one entry a dimension of `global_shape`."""

    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        """The box of a parameter that is not sharded."""
        return Box(shape, (0,) * len(shape), shape)

    @staticmethod
    def rows(global_shape: tuple[int, ...], start: int, stop: int) -> Box:
        """The box that holds entries start..stop of the first dimension (a range of experts)."""
        rest = global_shape[1:]
        return Box(global_shape, (start,) + (0,) * len(rest), (stop - start, *rest))

    @staticmethod
    def columns(global_shape: tuple[int, ...], start: int, stop: int) -> Box:
        """The box that holds entries start..stop of the last dimension (a slice of d)."""
        rest = global_shape[:-1]
        return Box(global_shape, (*(0,) * len(rest), start), (*rest, stop - start))

    @property
    def index(self) -> tuple[slice, ...]:
        """What picks the box out of its global tensor."""
        return tuple(slice(first, first + size) for first, size in zip(self.offset, self.shape, strict=True))


@dataclass(frozen=True)
class Shard:
    """A parameter of which `ranks` ranks hold a part each, this one `box`; with 1 the part is all of it.

    A module with such parameters has a method `shards`, which gives them by name.
    """

    box: Box
    ranks: int
