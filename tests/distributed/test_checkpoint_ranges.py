"""Boxes and ranges against brute force: every entry numbered, every overlap found."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed import checkpoint
from distributed.checkpoint import Meta, reader
from distributed.checkpoint.ranges import overlaps, runs
from distributed.fragment import Fragment
from distributed.topology import Topology
from model.sharding import Box

Place = tuple[Box, int, int]
ALONE = Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)


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
    found = runs(*place)
    columns = [column.tolist() for column in (found.global_start, found.local_start, found.length)]
    assert [begin + k for begin, _, length in zip(*columns, strict=True) for k in range(length)] == numbers(place)
    assert [begin + k for _, begin, length in zip(*columns, strict=True) for k in range(length)] == list(range(place[2] - place[1]))


@given(two_places)
def test_overlaps_are_the_common_entries(pair: tuple[Place, Place]) -> None:
    source, target = (numbers(place) for place in pair)
    copied = {}
    for copy in overlaps(*pair):
        for row in range(copy.count):
            for k in range(copy.length):
                entry = target[copy.target_start + row * copy.target_step + k]
                assert source[copy.source_start + row * copy.source_step + k] == entry
                assert entry not in copied
                copied[entry] = True
    assert set(copied) == set(source) & set(target)


@given(two_places, st.integers(1, 40))
def test_blocks_are_the_same_copies(pair: tuple[Place, Place], entries: int) -> None:
    for copy in overlaps(*pair):
        blocks = list(copy.blocks(entries))
        assert all(block.count == 1 or (block.count - 1) * block.source_step + block.length <= entries for block in blocks)
        starts = [(b.source_start + i * b.source_step, b.target_start + i * b.target_step) for b in blocks for i in range(b.count)]
        assert starts == [(copy.source_start + i * copy.source_step, copy.target_start + i * copy.target_step) for i in range(copy.count)]


def test_expert_rows_are_one_run() -> None:
    """A range of experts is contiguous, however large the bank."""
    assert len(runs(Box.rows((155, 412, 128), 38, 77), 5, 39 * 412 * 128).length) == 1


def test_columns_of_a_million_rows_are_three_copies() -> None:
    """The rows that a range cuts, and all between them; a loop over rows would take a minute a table."""
    n_rows = 1 << 20
    source, target = Box.columns((n_rows, 32), 16, 32), Box.columns((n_rows, 32), 10, 21)
    copies = overlaps((source, 7, n_rows * 16 - 12), (target, 3, n_rows * 11))
    assert [(copy.length, copy.count) for copy in copies] == [(5, n_rows - 2), (4, 1)]


@pytest.mark.parametrize("read_bytes", [1 << 20, 100])
def test_columns_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    """From a file of whole rows into a range of a slice, in one read or in blocks of a few rows."""
    monkeypatch.setattr(reader, "READ_BYTES", read_bytes)
    table = torch.arange(40 * 7.0)
    saved = [Fragment("table", Box.whole((40, 7)), 0, 280, {"master": table})]
    checkpoint.save(tmp_path, 1, saved, {}, Meta(applied_steps=1, tokens=1), ALONE)
    opened = reader.Reader(checkpoint.checkpoint_path(tmp_path, 1))
    for first, last in ((0, 2), (2, 5), (5, 7), (0, 7)):
        box = Box.columns((40, 7), first, last)
        start, stop = last - first - 1, math.prod(box.shape) - 3
        view = torch.full((stop - start,), torch.nan)
        opened.fill(Fragment("table", box, start, stop, {"master": view}))
        assert torch.equal(view, table.view(40, 7)[box.index].flatten()[start:stop])
