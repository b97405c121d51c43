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
