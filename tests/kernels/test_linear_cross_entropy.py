"""linear_cross_entropy against its reference: the sum and every gradient, in chunks of any length, and nothing kept of size N x V."""

from __future__ import annotations

import pytest
import torch
from drawn_routes import TOLERANCES, dtypes, few_examples, normal, relative_error, seeds
from hypothesis import given
from hypothesis import strategies as st

from kernels import linear_cross_entropy as room
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def leaves(seed: int, n_rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((n_rows, width), (vocabulary, width), (vocabulary,))
    return [normal(seed + number, *shape, dtype=dtype).requires_grad_() for number, shape in enumerate(shapes)]


@few_examples
@given(seed=seeds, dtype=dtypes, n_rows=st.integers(0, 300), width=st.sampled_from([1, 16, 41]), vocabulary=st.sampled_from([1, 7, 300]))
def test_equals_reference(seed: int, dtype: torch.dtype, n_rows: int, width: int, vocabulary: int) -> None:
    mine = leaves(seed, n_rows, width, vocabulary, dtype)
    theirs = [leaf.detach().double().requires_grad_() for leaf in mine]
    target_N = torch.randint(vocabulary, (n_rows,), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "ENTRIES_A_CHUNK", {"cpu": 64 * vocabulary})  # 64 rows at a time
        found = linear_cross_entropy(*mine, target_N)
    expected = linear_cross_entropy_reference(*theirs, target_N)
    assert found.dtype == dtype and relative_error(found.detach(), expected.detach()) <= TOLERANCES[dtype]
    for loss in (found, expected):
        (loss / 7).backward()
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == dtype
        # With one word all gradients are zero, and what is left is the rounding of a probability of one.
        expected_gradient = b.grad + (vocabulary == 1)
        assert relative_error(a.grad.double() + (vocabulary == 1), expected_gradient) <= TOLERANCES[dtype]


def test_bfloat16_keeps_its_type_and_comes_near() -> None:
    mine = leaves(1, 100, 32, 50, torch.bfloat16)
    theirs = [leaf.detach().double().requires_grad_() for leaf in mine]
    target_N = torch.arange(100) % 50
    found, expected = linear_cross_entropy(*mine, target_N), linear_cross_entropy_reference(*theirs, target_N)
    assert found.dtype == torch.float32
    for loss in (found, expected):
        loss.backward()
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == torch.bfloat16
        assert (a.grad.double() - b.grad).norm() / b.grad.norm() <= 1e-2


def test_nothing_of_rows_by_vocabulary_is_kept() -> None:
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear_cross_entropy(*leaves(2, 90, 8, 30, torch.float32), torch.zeros(90, dtype=torch.int64))
    assert sorted(kept) == [(30,), (30, 8), (90, 8)]
