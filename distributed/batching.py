"""How one step's samples are shared: a pure function of the step's ids, the world and the rank.

The global batch is the same whatever the world. A rank takes a contiguous share (floor or ceil when it does not divide)
and cuts it into micro-batches; all ranks run equally many, some of them perhaps empty, so that all join every collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_share(n_samples: int, world: int, rank: int) -> range:
    """Positions within the global batch that `rank` of `world` takes."""
    return range(n_samples * rank // world, n_samples * (rank + 1) // world)


def micro_batches(ids: Sequence[int], world: int, rank: int, micro_batch: int) -> list[list[int]]:
    """The rank's ids cut into micro-batches of at most `micro_batch`; the count is equal on all ranks."""
    largest_share = -(-len(ids) // world)
    count = -(-largest_share // micro_batch)
    share = rank_share(len(ids), world, rank)
    mine = [ids[position] for position in share]
    return [mine[start * micro_batch : (start + 1) * micro_batch] for start in range(count)]


def segments_of(tokens_BT: Tensor, end_of_document: int) -> Tensor:
    """Document number of every position [B, T]: positions after an end-of-document token belong to the next one."""
    ends_BT = (tokens_BT == end_of_document).long()
    return torch.cumsum(ends_BT, dim=1) - ends_BT
