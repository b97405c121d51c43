"""The paper's window counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from distributed.errors import RunError
from distributed.protocols import check_protocol, windows_counted


class CountedWindows:
    """`whole` windows of 1024 predicted tokens, and a shorter one if `ragged`."""

    seq_len = 1024

    def __init__(self, whole: int, ragged: bool) -> None:
        self.lengths = [self.seq_len + 1] * whole + [7] * ragged
        self.ids = range(50, 50 + len(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def read_ragged(self, ids: Sequence[int]) -> list[np.ndarray]:
        """Rows by id."""
        return [np.zeros(self.lengths[self.ids.index(number)], np.int64) for number in ids]


def counted(protocol: str, whole: int, ragged: bool = False, max_windows: int | None = None) -> int:
    windows: Any = CountedWindows(whole, ragged)
    return windows_counted(protocol, windows, "c4", max_windows)


def test_the_counts_of_the_paper() -> None:
    assert counted("paper_table", 1008) == 1008
    assert counted("paper_figure", 1008) == 960
    assert counted("paper_table", 4111, max_windows=4111) == 4096
    assert counted("paper_figure", 4111, max_windows=4111) == 4096


def test_a_larger_split_is_cut_to_the_first_windows() -> None:
    assert counted("paper_table", 5000) == 1008


def test_a_ragged_window_belongs_to_no_whole_batch() -> None:
    assert counted("paper_table", 31, ragged=True) == 16
    assert counted("paper_table", 32, ragged=True) == 32


def test_tail_scores_everything() -> None:
    assert counted("tail", 31, ragged=True) == 32
    assert counted("tail", 31, max_windows=4) == 4
    assert counted("tail", 0) == 0


def test_too_few_windows_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RunError, match="source 'c4' has 15 whole held-out windows, protocol paper_table needs 16; use protocol tail"):
        counted("paper_table", 15, ragged=True)


def test_unknown_protocols_are_refused() -> None:
    check_protocol("tail")
    with pytest.raises(RunError, match="protocol is 'table'; choose one of tail, paper_table, paper_figure"):
        check_protocol("table")
