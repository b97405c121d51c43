"""Shares of a step: nothing lost, nothing twice, whatever the world."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed.batching import micro_batches, rank_share, segments_of


@given(n=st.integers(0, 50), world=st.integers(1, 9), micro_batch=st.integers(1, 7))
def test_shares_and_micro_batches_partition_the_step_in_order(n: int, world: int, micro_batch: int) -> None:
    ids = list(range(100, 100 + n))
    cut = [micro_batches(ids, world, rank, micro_batch) for rank in range(world)]
    assert [sample for rank in cut for batch in rank for sample in batch] == ids
    assert len({len(batches) for batches in cut}) == 1
    assert max((len(batch) for rank in cut for batch in rank), default=0) <= micro_batch


@given(n=st.integers(0, 50), world=st.integers(1, 9))
def test_shares_differ_by_at_most_one(n: int, world: int) -> None:
    sizes = [len(rank_share(n, world, rank)) for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1


def test_a_document_ends_with_its_end_token() -> None:
    tokens_BT = torch.tensor([[5, 9, 3, 3, 9, 9, 4], [9, 1, 1, 1, 1, 1, 9]])
    expected = [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]
    assert segments_of(tokens_BT, end_of_document=9).tolist() == expected
