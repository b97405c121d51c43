"""A whole model with its experts spread over processes against one process, float64: gradients within 1e-12 of the tensor's maximum."""

from __future__ import annotations

import pytest
import torch
from expert_parallel_work import run_whole
from pool import Pool
from tiny_models import relative


@pytest.mark.parametrize("move", ["tokens", "weights"])
@pytest.mark.parametrize(
    ("share", "attention", "recompute", "kind"),
    [
        ((2, 1), False, "none", "peri"),
        ((1, 3), True, "visit", "peri"),
        ((2, 0, 1), True, "experts", "post"),
        ((0, 1, 1, 2), True, "visit", "gated_expert"),
        ((2, 0, 1), True, "visit", "dense_ends"),
        ((2, 0, 1), True, "visit", "act"),
        ((2, 1), False, "none", "act"),
    ],
)
def test_gradients_are_those_of_one_process(
    pool: Pool, share: tuple[int, ...], attention: bool, recompute: str, kind: str, move: str
) -> None:
    """Unequal shares, ranks without tokens, heads cut between ranks, more ranks than flat attention experts."""
    how = {"partition_attention": attention, "recompute": recompute, "kind": kind, "move": move}
    answers = pool.run(len(share), "expert_parallel_work:run_share", share=share, **how)
    expected = run_whole(sum(share), kind)
    orders = [order for _, _, order in answers]
    assert all(order == orders[0] for order in orders) and orders[0]
    for name, whole in expected.items():
        if name not in answers[0][1]:
            assert relative(sum(gradients[name] for gradients, _, _ in answers), whole) <= 1e-12, name
            continue
        rows = torch.cat([gradients[name] for gradients, _, _ in sorted(answers, key=lambda answer: answer[1][name])])
        assert rows.shape == whole.shape
        assert relative(rows, whole) <= 1e-12, name
