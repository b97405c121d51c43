"""Where entries of a box lie in the global tensor, and which of them two fragments have in common.

A box is a block of a global tensor; a fragment is a range of the flattened box. Flattened (row-major) global positions
are the common ground: a fragment is a list of runs of them, in rising order, and loading into another layout is
the intersection of two such lists. A slice of columns has a run a row, of a million rows: so lists are tensors, and what
they have in common is told as few copies of many equally spaced rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from model.sharding import Box


@dataclass(frozen=True)
class Runs:
    """`length` entries that follow each other both in the global tensor and in the fragment: int64 tensors, an entry a run."""

    global_start: Tensor
    local_start: Tensor
    length: Tensor


@dataclass(frozen=True)
class Copy:
    """`count` rows of `length` entries: of one fragment `source_start ...`, of another `target_start ...`, each row so many entries
    behind the one before it."""

    source_start: int
    target_start: int
    length: int
    count: int = 1
    source_step: int = 0
    target_step: int = 0

    def blocks(self, entries: int) -> Iterator[Copy]:
        """The same in parts whose rows, with what lies between them in the source, span at most `entries` or are one row."""
        rows = max(1, entries // max(1, self.source_step))
        for first in range(0, self.count, rows):
            source, target = self.source_start + first * self.source_step, self.target_start + first * self.target_step
            yield replace(self, source_start=source, target_start=target, count=min(rows, self.count - first))


def runs(box: Box, start: int, stop: int) -> Runs:
    """The runs of entries `start:stop` of the flattened `box`, in rising order; local positions count from `start`."""
    if start >= stop:
        return Runs(*torch.empty(3, 0, dtype=torch.int64))
    # A leading dimension of size one lets scalars and whole tensors go the same way as the rest.
    shape, global_shape, offset = (1, *box.shape), (1, *box.global_shape), (0, *box.offset)
    cut = max((d for d in range(len(shape)) if shape[d] != global_shape[d]), default=0)
    run_length = math.prod(shape[cut:])
    row = torch.arange(start // run_length, -(-stop // run_length))
    first, last = (row * run_length).clamp(min=start), ((row + 1) * run_length).clamp(max=stop)
    outer = _outer_start(row, shape[:cut], global_shape[:cut], offset[:cut])
    begin = (outer * global_shape[cut] + offset[cut]) * math.prod(global_shape[cut + 1 :])
    return Runs(begin + first - row * run_length, first - start, last - first)


def overlaps(source: tuple[Box, int, int], target: tuple[Box, int, int]) -> list[Copy]:
    """What two fragments (box, start, stop) of one global tensor have in common."""
    ours, theirs = runs(*source), runs(*target)
    # Whatever is common begins where a run of one of the two begins.
    first = torch.cat([ours.global_start, theirs.global_start]).unique()
    our, their = (torch.searchsorted(each.global_start, first, right=True) - 1 for each in (ours, theirs))
    both = (our >= 0) & (their >= 0)
    first, our, their = first[both], our[both], their[both]
    in_ours, in_theirs = first - ours.global_start[our], first - theirs.global_start[their]
    length = torch.minimum(ours.length[our] - in_ours, theirs.length[their] - in_theirs)
    common = length > 0
    return _in_rows((ours.local_start[our] + in_ours)[common], (theirs.local_start[their] + in_theirs)[common], length[common])


def _in_rows(source: Tensor, target: Tensor, length: Tensor) -> list[Copy]:
    """One copy for neighbours of one length that keep their distance."""
    n = len(length)
    apart = torch.stack([source.diff(), target.diff(), length[1:], length[:-1]])
    changes = (apart[:, 1:] != apart[:, :-1]).any(0).nonzero().flatten() + 1
    copies, done = [], 0
    for begin, last in pairwise([0, *changes.tolist(), n - 1]):
        first = max(done, begin)
        if last > first and length[first] == length[last]:
            copies += [Copy(int(source[i]), int(target[i]), int(length[i])) for i in range(done, first)]
            steps = int(source[last] - source[last - 1]), int(target[last] - target[last - 1])
            copies.append(Copy(int(source[first]), int(target[first]), int(length[first]), last - first + 1, *steps))
            done = last + 1
    return copies + [Copy(int(source[i]), int(target[i]), int(length[i])) for i in range(done, n)]


def _outer_start(row: Tensor, shape: tuple[int, ...], global_shape: tuple[int, ...], offset: tuple[int, ...]) -> Tensor:
    """Flattened global index of box rows `row` over the dimensions in front of the cut one."""
    flat, stride = torch.zeros_like(row), 1
    for size, global_size, begin in reversed(list(zip(shape, global_shape, offset, strict=True))):
        flat += (row % size + begin) * stride
        row, stride = row // size, stride * global_size
    return flat
