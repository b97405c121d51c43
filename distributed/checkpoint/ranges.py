"""Where entries of a box lie in the global tensor, and which of them two fragments have in common.

A box is a block of a global tensor; a fragment is a range of the flattened box. Flattened (row-major) global positions
are the common ground: a fragment is a short list of runs of them, in rising order, and loading into another layout is
the intersection of two such lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from model.sharding import Box


@dataclass(frozen=True)
class Run:
    """`length` entries that follow each other both in the global tensor and in the fragment."""

    global_start: int
    local_start: int
    length: int


@dataclass(frozen=True)
class Copy:
    """Entries `source_start ... + length` of one fragment are entries `target_start ...` of another."""

    source_start: int
    target_start: int
    length: int


def runs(box: Box, start: int, stop: int) -> Iterator[Run]:
    """The runs of entries `start:stop` of the flattened `box`; local positions count from `start`."""
    # A leading dimension of size one lets scalars and whole tensors go the same way as the rest.
    shape, global_shape, offset = (1, *box.shape), (1, *box.global_shape), (0, *box.offset)
    cut = max((d for d in range(len(shape)) if shape[d] != global_shape[d]), default=0)
    run_length = math.prod(shape[cut:])
    inside = math.prod(global_shape[cut + 1 :])
    position = start
    while position < stop:
        row, within = divmod(position, run_length)
        length = min(run_length - within, stop - position)
        outer = _outer_start(row, shape[:cut], global_shape[:cut], offset[:cut])
        yield Run((outer * global_shape[cut] + offset[cut]) * inside + within, position - start, length)
        position += length


def overlaps(source: tuple[Box, int, int], target: tuple[Box, int, int]) -> list[Copy]:
    """What two fragments (box, start, stop) of one global tensor have in common."""
    found = []
    sources, targets = runs(*source), runs(*target)
    ours, theirs = next(sources, None), next(targets, None)
    while ours is not None and theirs is not None:
        first = max(ours.global_start, theirs.global_start)
        our_end, their_end = ours.global_start + ours.length, theirs.global_start + theirs.length
        length = min(our_end, their_end) - first
        if length > 0:
            found.append(Copy(ours.local_start + first - ours.global_start, theirs.local_start + first - theirs.global_start, length))
        if our_end <= their_end:
            ours = next(sources, None)
        else:
            theirs = next(targets, None)
    return found


def _outer_start(row: int, shape: tuple[int, ...], global_shape: tuple[int, ...], offset: tuple[int, ...]) -> int:
    """Flattened global index of box row `row` over the dimensions in front of the cut one."""
    index = []
    for size in reversed(shape):
        row, within = divmod(row, size)
        index.append(within)
    flat = 0
    for within, size, begin in zip(reversed(index), global_shape, offset, strict=True):
        flat = flat * size + begin + within
    return flat
