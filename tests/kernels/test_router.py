"""Choices, weights and the entropy regulariser. CPU only."""

from __future__ import annotations

import math

import pytest
import torch
from drawn_routes import normal

from kernels.router import negative_entropy, route, select, softmax_sum, weigh


def test_select_takes_the_best_scores():
    logits_TE = normal(1, 50, 155, dtype=torch.float32) * 30  # sigmoids saturate, logits do not
    expert_TK = select(logits_TE, 12)
    assert expert_TK.dtype == torch.int64 and expert_TK.shape == (50, 12)
    expected_TK = logits_TE.double().argsort(dim=-1, descending=True)[:, :12]
    assert torch.equal(expert_TK.sort().values, expected_TK.sort().values)


def test_select_every_expert_and_of_heads():
    assert torch.equal(select(normal(2, 7, 5, dtype=torch.float64), 5).sort().values, torch.arange(5).expand(7, 5))
    assert select(normal(3, 4, 3, 6, dtype=torch.bfloat16), 2).shape == (4, 3, 2)
    assert select(normal(3, 0, 6, dtype=torch.float32), 2).shape == (0, 2)


def test_dropout_masks_that_share_of_the_scores():
    logits_TE = torch.arange(10.0).expand(20_000, 10)
    chosen_T = select(logits_TE, 1, dropout=0.3, generator=torch.Generator().manual_seed(4))[:, 0]
    # The best expert is dropped with probability 0.3, and the second then wins unless dropped too.
    share = torch.bincount(chosen_T, minlength=10) / len(chosen_T)
    assert share[9] == pytest.approx(0.7, abs=0.02) and share[8] == pytest.approx(0.21, abs=0.02)
    again_T = select(logits_TE, 1, dropout=0.3, generator=torch.Generator().manual_seed(4))[:, 0]
    assert torch.equal(chosen_T, again_T)


def test_weights_are_sigmoids_and_reach_only_the_chosen():
    logits_TE = normal(5, 6, 8, dtype=torch.float64).requires_grad_()
    expert_TK = select(logits_TE, 3)
    weight_TK = weigh(logits_TE, expert_TK)
    assert torch.equal(weight_TK, torch.sigmoid(logits_TE.gather(1, expert_TK)))
    weight_TK.sum().backward()
    touched_TE = torch.zeros(6, 8, dtype=torch.bool).scatter(1, expert_TK, True)
    assert torch.equal(logits_TE.grad != 0, touched_TE)


@pytest.mark.parametrize("dtype, kept", [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_router_arithmetic_is_at_least_float32(dtype, kept):
    logits = normal(6, 2, 5, 7, dtype=dtype)
    assert weigh(logits, select(logits, 2)).dtype == kept
    assert softmax_sum(logits).dtype == kept and negative_entropy(softmax_sum(logits)).dtype == kept


def test_entropy_of_even_and_collapsed_routers():
    even = softmax_sum(torch.zeros(3, 10, 155, dtype=torch.float64)) / 10
    torch.testing.assert_close(negative_entropy(even), torch.full((3,), -math.log(155), dtype=torch.float64), rtol=1e-14, atol=0)
    collapsed = torch.zeros(2, 155).index_fill(1, torch.tensor([7]), 1.0).requires_grad_()
    value = negative_entropy(collapsed)
    assert torch.equal(value, torch.zeros(2))
    value.sum().backward()
    assert torch.isfinite(collapsed.grad).all()


def test_entropy_equals_definition_with_gradient():
    logits_BTE = normal(7, 2, 9, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: negative_entropy(softmax_sum(logits) / 9), [logits_BTE])
    p_BE = torch.softmax(logits_BTE.detach(), -1).mean(1)
    torch.testing.assert_close(negative_entropy(softmax_sum(logits_BTE) / 9), (p_BE * p_BE.log()).sum(-1), rtol=1e-13, atol=0)


def test_route_is_the_three_together_and_obeys_choices():
    logits_BTME = normal(6, 2, 5, 3, 7, dtype=torch.float64)
    expert, weight, softmax_sum_BME, load_ME = route(logits_BTME, 2)
    assert torch.equal(expert, select(logits_BTME, 2)) and torch.equal(weight, weigh(logits_BTME, expert))
    assert torch.equal(softmax_sum_BME, softmax_sum(logits_BTME.transpose(1, 2)))
    assert torch.equal(load_ME, torch.stack([expert[:, :, router].flatten().bincount(minlength=7) for router in range(3)]))
    other = (expert + 1) % 7
    obeyed, weight, _, load_ME_of_other = route(logits_BTME, 2, chosen=other, dropout=0.9)
    assert torch.equal(obeyed, other) and torch.equal(weight, weigh(logits_BTME, other))
    assert torch.equal(load_ME_of_other, load_ME.roll(1, 1))
