"""Boxes and ranges against brute force: every entry numbered, every overlap found."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed.checkpoint.ranges import overlaps, runs
from model.sharding import Box

Place = tuple[Box, int, int]


@st.composite
def places(draw: st.DrawFn, global_shape: tuple[int, ...]) -> Place:
    """A box within a global shape and a range of it; either may be empty."""
    cuts = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in global_shape]
    box = Box(global_shape, tuple(cut[0] for cut in cuts), tuple(cut[1] - cut[0] for cut in cuts))
    start, stop = sorted(draw(st.integers(0, math.prod(box.shape))) for _ in range(2))
    return box, start, stop


def numbers(place: Place) -> list[int]:
    """Global numbers of a fragment's entries, by slicing."""
    box, start, stop = place
    everything = torch.arange(math.prod(box.global_shape)).view(box.global_shape)
    block = everything[tuple(slice(first, first + size) for first, size in zip(box.offset, box.shape, strict=True))]
    numbered: list[int] = block.flatten()[start:stop].tolist()
    return numbered


two_places = st.lists(st.integers(1, 4), max_size=4).flatmap(lambda shape: st.tuples(places(tuple(shape)), places(tuple(shape))))


@given(two_places)
def test_runs_number_every_entry(pair: tuple[Place, Place]) -> None:
    place = pair[0]
    found = [run.global_start + k for run in runs(*place) for k in range(run.length)]
    assert found == numbers(place)
    assert [run.local_start + k for run in runs(*place) for k in range(run.length)] == list(range(len(found)))


@given(two_places)
def test_overlaps_are_the_common_entries(pair: tuple[Place, Place]) -> None:
    source, target = (numbers(place) for place in pair)
    copied = {}
    for copy in overlaps(*pair):
        for k in range(copy.length):
            assert source[copy.source_start + k] == target[copy.target_start + k]
            copied[target[copy.target_start + k]] = True
    assert set(copied) == set(source) & set(target)


def test_expert_rows_are_one_run() -> None:
    """A range of experts is contiguous, however large the bank."""
    assert len(list(runs(Box.rows((155, 412, 128), 38, 77), 5, 39 * 412 * 128))) == 1
