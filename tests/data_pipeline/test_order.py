"""The sample order: pure, exactly once, in proportion."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.order import SampleOrder
from data_pipeline.permutation import permuted


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permutation_takes_every_element_once(size: int, key: int) -> None:
    elements = permuted(np.arange(size), size, key)
    assert np.array_equal(np.sort(elements), np.arange(size))
    assert permuted(np.array([size // 2]), size, key)[0] == elements[size // 2]


def test_permutation_is_the_same_for_ever() -> None:
    assert permuted(np.arange(10), 10, 7).tolist() == [8, 0, 5, 3, 6, 2, 4, 7, 1, 9]
    assert permuted(np.arange(3), 10**12, 7).tolist() == [731283817851, 382492338369, 698057373432]


def test_permutation_looks_random() -> None:
    size = 10_000
    elements = permuted(np.arange(size), size, 3)
    assert abs(np.corrcoef(np.arange(size), elements)[0, 1]) < 0.05
    assert abs(np.corrcoef(elements[:-1], elements[1:])[0, 1]) < 0.05
    fixed = sum(int((permuted(np.arange(200), 200, key) == np.arange(200)).sum()) for key in range(200))
    assert 140 < fixed < 260  # one fixed point a permutation, on average


def test_an_epoch_takes_every_window_once_but_for_the_cut() -> None:
    order = SampleOrder({"s": 1003}, None, global_batch=10, seed=0)
    assert order.steps_per_epoch == 100
    epochs = [[sample for step in range(100) for sample in order.ids(epoch * 100 + step)] for epoch in range(3)]
    for samples in epochs:
        assert len(samples) == len(set(samples)) == 1000 and set(samples) <= set(range(1003))
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])
    assert [order.epoch(step) for step in (0, 99, 100, 299)] == [0, 0, 1, 2]
    assert order.ids(0) != SampleOrder({"s": 1003}, None, 10, seed=1).ids(0)


@pytest.mark.parametrize("counts", [{"s": 203}, {"a": 120, "b": 31}])
def test_steps_do_not_depend_on_world_hosts_or_where_a_run_began(counts: dict[str, int]) -> None:
    whole = [SampleOrder(counts, None, 12, seed=5).ids(step) for step in range(40)]
    for world in (1, 2, 3, 4):
        for start in (0, 29):  # a new process a rank, that starts at a step
            ranks = [SampleOrder(counts, None, 12, seed=5) for _ in range(world)]
            for step in range(start, 40):
                bounds = [12 * rank // world for rank in range(world + 1)]
                shares = [order.ids(step)[bounds[rank] : bounds[rank + 1]] for rank, order in enumerate(ranks)]
                assert list(chain.from_iterable(shares)) == whole[step]


def test_unequal_ranks_share_a_step_without_loss() -> None:
    order = SampleOrder({"s": 500}, None, 10, seed=5)
    bounds = [10 * rank // 4 for rank in range(5)]
    shares = [order.ids(3)[low:high] for low, high in pairwise(bounds)]
    assert {len(share) for share in shares} == {2, 3}
    assert Counter(chain.from_iterable(shares)) == Counter(order.ids(3)) and len(set(order.ids(3))) == 10


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(1, 50), min_size=2, max_size=5),
    weights=st.lists(st.floats(0.01, 100.0), min_size=5, max_size=5),
    batch=st.integers(1, 9),
)
def test_mixtures_keep_their_proportions_and_wrap_each_source(counts: list[int], weights: list[float], batch: int) -> None:
    sources = {f"s{number}": count for number, count in enumerate(counts)}
    proportions = {f"s{number}": weights[number] for number in range(len(counts))}
    order = SampleOrder(sources, proportions, batch, seed=1)
    starts = np.cumsum([0, *counts])
    drawn: dict[str, list[int]] = {name: [] for name in sources}
    for step in range(25):
        ids = order.ids(step)
        assert len(ids) == batch
        for sample in ids:
            place = int(np.searchsorted(starts, sample, side="right")) - 1
            drawn[f"s{place}"].append(sample - int(starts[place]))
        total = sum(proportions.values())
        for name in sources:
            assert abs(len(drawn[name]) - (step + 1) * batch * proportions[name] / total) <= len(sources) / 2 + 1e-6
    for name, samples in drawn.items():
        count = sources[name]
        for start in range(0, len(samples) - count + 1, count):
            assert sorted(samples[start : start + count]) == list(range(count))
    assert order.epoch(25) == min(len(samples) // sources[name] for name, samples in drawn.items())


def test_a_mixture_defaults_to_the_sizes_and_is_mixed_within_a_step() -> None:
    order = SampleOrder({"a": 75, "b": 25}, None, 20, seed=0)
    assert order.steps_per_epoch == 5
    for step in range(5):
        assert sum(sample >= 75 for sample in order.ids(step)) == 5
        assert 0 < sum(sample >= 75 for sample in order.ids(step)[:10]) < 5


def test_faults_are_named() -> None:
    with pytest.raises(DataError, match=r"train.global_batch is 8 but the train split has 7 windows; lower it to 7"):
        SampleOrder({"s": 7}, None, 8, seed=0)
    with pytest.raises(DataError, match="source 'b' has no train windows"):
        SampleOrder({"a": 7, "b": 0}, None, 2, seed=0)
    with pytest.raises(DataError, match=r"source 'b' has proportion 0.0; it must be above 0"):
        SampleOrder({"a": 7, "b": 7}, {"a": 1.0}, 2, seed=0)


def test_streams_follow_each_other_without_a_permutation() -> None:
    order = SampleOrder({"s": 23}, None, global_batch=5, seed=3, order="streams")
    taken = [order.ids(step) for step in range(5)]
    assert taken[0] == taken[4] == [0, 4, 8, 12, 16]
    assert taken[1:4] == [[1, 5, 9, 13, 17], [2, 6, 10, 14, 18], [3, 7, 11, 15, 19]]
