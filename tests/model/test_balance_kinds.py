"""The kinds of balance against their formulas, over every scope, and a bias that evens out loads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import SIGMA_MOE, relative, tiny_model, tiny_tokens, worst
from torch import Tensor

from model.balance_config import EntropyBalance, MIMBalance, SwitchBalance
from model.exchange import LocalExchange
from model.feed_forward import RoutedFeedForward
from model.moe_config import SigmaMoEConfig
from model.moeut import MoEUT
from model.regularisers import statistic, value
from model.visit import Visit

KINDS: dict[str, dict[str, Any]] = {
    "entropy": {"kind": "entropy"},
    "switch": {"kind": "switch"},
    "mim": {"kind": "mim"},
    "released": {"kind": "mim", "mim": "released"},
}
WEIGHT = 0.3


def model_with(kind: str, scope: str, **changes: Any) -> MoEUT:
    """Attention's routers are left out of the loss."""
    feed_forward = {**SIGMA_MOE, "balance": {**KINDS[kind], "scope": scope}, "balance_weight": WEIGHT}
    attention = {"kind": "dense", "n_heads": 2, "d_head": 18}
    return tiny_model(**{"attention": attention, "feed_forward": feed_forward, **changes})


def formula(kind: str, logits_NE: Tensor, expert_NK: Tensor) -> Tensor:
    """Of the tokens given, by the definition."""
    p_NE = logits_NE.softmax(-1)
    p_E = p_NE.mean(0)
    if kind == "switch":
        f_E = torch.bincount(expert_NK.flatten(), minlength=len(p_E)).double() / expert_NK.numel()
        return len(p_E) * (f_E * p_E).sum()
    marginal, conditional = (p_E * p_E.log()).sum(), (p_NE * p_NE.log()).sum(-1).mean()
    return {"entropy": marginal, "mim": marginal - conditional, "released": -marginal - conditional}[kind]


def by_definition(model: MoEUT, tokens_BT: Tensor, kind: str, by_sequence: bool) -> Tensor:
    """The weighted regulariser of a batch, from what the routers read."""
    seen: dict[int, list[Tensor]] = {}
    hooks = [
        layer.feed_forward.router.register_forward_pre_hook(lambda _, inputs, number=number: seen.setdefault(number, []).append(inputs[0]))
        for number, layer in enumerate(model.layers)
    ]
    model(tokens_BT)
    for hook in hooks:
        hook.remove()
    total = torch.zeros((), dtype=torch.float64)
    for number, visits in seen.items():
        logits_BSE = torch.cat(visits, dim=1) @ model.layers[number].feed_forward.router.weight.T
        groups = list(logits_BSE) if by_sequence else [logits_BSE.flatten(0, 1)]
        total = total + sum(formula(kind, logits_NE, logits_NE.topk(3).indices) for logits_NE in groups) / len(groups)
    return WEIGHT * total


def gradients_of(model: MoEUT, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {name: gradient for (name, _), gradient in zip(model.named_parameters(), found, strict=True) if gradient is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "step"])
def test_a_kind_is_its_formula_with_its_gradient(kind: str, scope: str) -> None:
    model, tokens_BT = model_with(kind, scope), tiny_tokens(3)
    output = model(tokens_BT)
    expected = by_definition(model, tokens_BT, kind, by_sequence=scope == "sequence")
    assert relative(output.balance_loss, expected) <= 1e-12
    assert relative(output.balance_B.mean(), expected) <= 1e-12
    found, wanted = gradients_of(model, output.balance_loss), gradients_of(model, expected)
    used = {name: gradient for name, gradient in found.items() if name in wanted}
    difference, where = worst(used, wanted)
    assert difference <= 1e-12, where
    assert all(gradient.abs().max() == 0 for name, gradient in found.items() if name not in wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_the_gradient_of_differences(kind: str) -> None:
    balance = {"entropy": EntropyBalance(), "switch": SwitchBalance(), "mim": MIMBalance(), "released": MIMBalance(mim="released")}[kind]
    logits_BTME = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expert_BTMK = logits_BTME.detach().topk(2).indices
    assert torch.autograd.gradcheck(lambda logits: value(balance, statistic(balance, logits, expert_BTMK).sum(0) / 10), [logits_BTME])


@pytest.mark.parametrize(
    ("logits", "paper", "released"),
    [
        (torch.eye(4).repeat(5, 1) * 60, -math.log(4), math.log(4)),  # balanced and confident
        (torch.eye(4)[:1].repeat(20, 1) * 60, 0.0, 0.0),  # collapsed
        (torch.eye(4)[:1].repeat(20, 1) * 12, 0.0, 4.8e-4),  # nearly collapsed
        (torch.zeros(20, 4), 0.0, 2 * math.log(4)),  # uniform
    ],
)
def test_the_published_values_of_mutual_information(logits: Tensor, paper: float, released: float) -> None:
    logits_BTME = logits.double()[None, :, None]
    expert_BTMK = logits_BTME.topk(1).indices
    for form, expected in (("paper", paper), ("released", released)):
        balance = MIMBalance(mim=form)
        assert value(balance, statistic(balance, logits_BTME, expert_BTMK)[0] / 20).item() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(("logits", "expected"), [(torch.eye(5).repeat(4, 1) * 0.1, 1.0), (torch.eye(5)[:1].repeat(20, 1) * 90, 5.0)])
def test_switch_is_one_when_even_and_the_number_of_experts_when_collapsed(logits: Tensor, expected: float) -> None:
    logits_BTME = logits.double()[None, :, None]
    balance = SwitchBalance()
    mean_1E = statistic(balance, logits_BTME, logits_BTME.topk(1).indices)[0] / 20
    assert value(balance, mean_1E).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [(3,), (1, 1, 1), (2, 0, 1)])
def test_a_step_cut_into_micro_batches_has_the_loss_and_gradient_of_one(kind: str, cut: tuple[int, ...]) -> None:
    model, tokens_BT = model_with(kind, "step"), tiny_tokens(3)
    parts = tokens_BT.split(list(cut))
    sums = [model(part_BT).step_sums for part_BT in parts]
    means = {key: sum(own[key] for own in sums) / 3 for key in sums[0]}
    loss = sum(model(part_BT, step_means=means).balance_B.sum() for part_BT in parts) / 3
    whole = model(tokens_BT).balance_loss
    assert relative(loss, whole) <= 1e-12
    difference, where = worst(gradients_of(model, loss), gradients_of(model, whole))
    assert difference <= 1e-12, where


def test_a_micro_batch_cut_in_two_is_another_function() -> None:
    model, tokens_BT = model_with("entropy", "micro_batch"), tiny_tokens(3)
    apart = sum(model(row_BT).balance_B.sum() for row_BT in tokens_BT.split(1)) / 3
    assert (apart - model(tokens_BT).balance_loss).abs() > 1e-4
    assert model(tokens_BT).step_sums == {}


@pytest.mark.parametrize("balance", [{"kind": "none"}, {"kind": "bias"}])
def test_without_a_regulariser_the_loss_has_none(balance: dict[str, Any]) -> None:
    model = tiny_model(attention={"kind": "dense", "n_heads": 2, "d_head": 18}, feed_forward={**SIGMA_MOE, "balance": balance})
    assert model(tiny_tokens()).balance_B.tolist() == [0.0, 0.0]


def biased_layer(rate: float) -> tuple[RoutedFeedForward, Tensor]:
    """A layer whose router likes its first experts, and tokens."""
    config = SigmaMoEConfig(n_experts=8, d_expert=4, top_k=2, balance={"kind": "bias", "rate": rate})
    layer = RoutedFeedForward(6, config, LocalExchange()).double()
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(4, 100, 6, dtype=torch.float64, generator=generator)
    x_BTD[..., 0] = 1.0
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5, generator=generator)
        layer.router.weight[:, 0] = torch.linspace(2.0, -2.0, 8)
    return layer, x_BTD


def test_a_bias_moves_loads_toward_even() -> None:
    layer, x_BTD = biased_layer(rate=0.02)
    loads = []
    for _ in range(60):
        record: dict[str, Any] = {}
        layer(x_BTD, x_BTD, Visit(record=record))
        loads.append(record["loads"]["feed_forward"][0])
        layer.router.move(loads[-1])
    assert loads[0].max() > 300 and loads[0].min() < 10  # of 100 an expert
    assert loads[-1].max() < 130 and loads[-1].min() > 70
    assert layer.router.bias_steps.abs().max() <= 60


def test_a_bias_moves_by_the_sign_and_stands_still_at_the_mean() -> None:
    layer, _ = biased_layer(rate=0.5)
    layer.router.move(torch.tensor([4, 9, 5, 5, 5, 5, 5, 2]))
    assert layer.router.bias_steps.tolist() == [1, -1, 0, 0, 0, 0, 0, 1]


def test_a_bias_changes_the_choice_and_no_weight() -> None:
    layer, x_BTD = biased_layer(rate=0.25)
    with torch.no_grad():
        layer.router.bias_steps += torch.tensor([0, 0, 0, 0, 0, 0, 8, 8])  # two above any sigmoid
        routing = layer.router(x_BTD, {})
    assert set(routing.expert_NMK.flatten().tolist()) == {6, 7}
    score_NE = (x_BTD @ layer.router.weight.T).flatten(0, 1).sigmoid()
    assert relative(routing.weight_NMK[:, 0], score_NE.gather(1, routing.expert_NMK[:, 0])) <= 1e-13


def test_a_bias_is_exact_in_a_narrow_model() -> None:
    """A thousand steps of 1e-3 would vanish in bfloat16 numbers near one."""
    layer, _ = biased_layer(rate=1e-3)
    for _ in range(1001):
        layer.router.move(torch.tensor([0, 2, 1, 1, 1, 1, 1, 1]))
    assert layer.bfloat16().router.bias_steps.tolist() == [1001, -1001, 0, 0, 0, 0, 0, 0]
