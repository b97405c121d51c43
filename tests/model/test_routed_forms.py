"""The forms of routed experts against plain loops over tokens, where two forms are one, and what they count and start from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import SIGMA_MOE, gradients, relative, tiny_config, tiny_model, tiny_tokens, worst
from torch import Tensor

from model.accounting import macs, parameters
from model.exchange import LocalExchange
from model.feed_forward import RoutedFeedForward
from model.moe_config import RoutedConfig, SBaseConfig, SigmaMoEConfig, SwitchConfig
from model.paper import SIGMA_MOE as PAPER_SIGMA_MOE
from model.scoring import sinkhorn
from model.visit import Visit

FORMS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid renormalised": {"renormalise": True},
    "softmax": {"score": "softmax"},
    "softmax renormalised": {"score": "softmax", "renormalise": True},
    "softmax over the chosen": {"score": "softmax", "softmax_over": "chosen"},
    "two layers": {"score": "softmax", "router_hidden": 5},
}


def layer_of(config: RoutedConfig, seed: int = 0, d_model: int = 6) -> RoutedFeedForward:
    layer = RoutedFeedForward(d_model, config, LocalExchange()).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    return layer


def sigma(**changes: Any) -> SigmaMoEConfig:
    return SigmaMoEConfig(**{"n_experts": 5, "d_expert": 4, "top_k": 2, **changes})


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_weights(logits_E: Tensor, chosen: list[int], form: dict[str, Any]) -> list[Tensor]:
    """By the definition, one token."""
    if form.get("softmax_over") == "chosen":
        exponentials = [logits_E[e].exp() for e in chosen]
        return [one / sum(exponentials) for one in exponentials]
    over_all = logits_E.exp().sum()
    score = [logits_E[e].exp() / over_all if form.get("score") == "softmax" else 1 / (1 + (-logits_E[e]).exp()) for e in chosen]
    return [one / sum(score) for one in score] if form.get("renormalise") else score


def plain(layer: RoutedFeedForward, x_BTD: Tensor, form: dict[str, Any]) -> Tensor:
    """The layer as a loop over tokens and their experts."""
    y_BTD = torch.zeros_like(x_BTD)
    router = layer.router
    for b, t in ((b, t) for b in range(x_BTD.shape[0]) for t in range(x_BTD.shape[1])):
        x_D = x_BTD[b, t]
        read = x_D if router.hidden is None else (router.hidden.weight @ x_D + router.hidden.bias).tanh()
        logits_E = router.weight @ read
        chosen = logits_E.argsort(descending=True)[: router.top_k].tolist()
        for e, weight in zip(chosen, plain_weights(logits_E, chosen, form), strict=True):
            y_BTD[b, t] = y_BTD[b, t] + weight * (torch.relu(x_D @ layer.up.weight[e]) @ layer.down.weight[e])
    return y_BTD


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_a_form_is_its_definition_forward_and_backward(form: dict[str, Any], top_k: int) -> None:
    if top_k == 1 and ("renormalise" in form or "softmax_over" in form):
        top_k = 2  # one weight would always be 1: refused
    layer, x_BTD = layer_of(sigma(**form, top_k=top_k)), drawn(2, 4, 6)
    y_BTD, expected = layer(x_BTD, x_BTD, Visit())[0], plain(layer, x_BTD, form)
    assert relative(y_BTD, expected) <= 1e-13
    parameters, direction = list(layer.parameters()), drawn(2, 4, 6, seed=4)
    found = torch.autograd.grad((y_BTD * direction).sum(), parameters)
    wanted = torch.autograd.grad((expected * direction).sum(), parameters)
    assert all((one - other).abs().max() <= 1e-12 for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_gradients_are_those_of_differences(form: dict[str, Any]) -> None:
    layer, x_BTD = layer_of(sigma(**form)), drawn(1, 3, 6).requires_grad_()
    record: dict[str, Any] = {}
    layer(x_BTD, x_BTD, Visit(record=record))
    kept = {"feed_forward": record["feed_forward"]}

    def of(x_BTD: Tensor, *parameters: Tensor) -> Tensor:
        return layer(x_BTD, x_BTD, Visit(record=dict(kept)))[0]

    assert torch.autograd.gradcheck(of, (x_BTD, *layer.router.parameters()))


def test_softmax_before_and_after_the_choice_are_one_when_renormalised() -> None:
    before, after = (tiny_model(feed_forward={**SIGMA_MOE, **FORMS[name]}) for name in ("softmax renormalised", "softmax over the chosen"))
    difference, where = worst(gradients(before, tiny_tokens()), gradients(after, tiny_tokens()))
    assert difference <= 1e-13, where


def test_with_all_experts_chosen_both_softmaxes_are_one() -> None:
    over_all, over_chosen = layer_of(sigma(top_k=5, score="softmax")), layer_of(sigma(top_k=5, score="softmax", softmax_over="chosen"))
    x_BTD = drawn(2, 4, 6)
    assert relative(over_all(x_BTD, x_BTD, Visit())[0], over_chosen(x_BTD, x_BTD, Visit())[0]) <= 1e-13


@pytest.mark.parametrize(
    ("name", "weight"), [("sigmoid", 0.5), ("sigmoid renormalised", 0.5), ("softmax", 0.2), ("softmax renormalised", 0.5)]
)
def test_even_logits_give_even_weights(name: str, weight: float) -> None:
    layer, x_BTD = layer_of(sigma(**FORMS[name])), drawn(1, 3, 6)
    torch.nn.init.zeros_(layer.router.weight)
    assert torch.equal(layer.router(x_BTD, {}).weight_NMK, torch.full((3, 1, 2), weight, dtype=torch.float64))


def test_router_dropout_is_of_the_hidden_layer_in_training_only() -> None:
    layer, x_BTD = layer_of(sigma(router_hidden=50, router_dropout=0.5)), drawn(1, 9, 6)
    first, second = (layer.train().router(x_BTD, {}).weight_NMK for _ in range(2))
    assert not torch.equal(first, second)
    still = layer.eval().router(x_BTD, {}).weight_NMK
    assert torch.equal(still, layer.router(x_BTD, {}).weight_NMK)


def test_sinkhorn_evens_out_experts_and_tokens() -> None:
    logits_NE = drawn(40, 5) * 2 + torch.arange(5) * 3.0
    even_NE = sinkhorn(logits_NE, 60).exp()
    assert relative(even_NE.sum(1), torch.ones(40, dtype=torch.float64)) <= 1e-12
    assert relative(even_NE.sum(0), torch.full((5,), 8.0, dtype=torch.float64)) <= 1e-6
    scale = logits_NE - even_NE.log()  # one factor a token and one an expert: nothing else was changed
    assert (scale - scale[:1] - scale[:, :1] + scale[0, 0]).abs().max() <= 1e-12
    assert sinkhorn(logits_NE[:0], 3).shape == (0, 5)


def test_s_base_chooses_evenly_in_training_and_the_best_when_evaluating() -> None:
    config = SBaseConfig(n_experts=5, d_expert=4, top_k=1, sinkhorn_iterations=30)
    layer, x_BTD = layer_of(config), drawn(4, 25, 6)
    with torch.no_grad():
        x_BTD[..., 0] = 1.0
        layer.router.weight[:, 0] += torch.arange(5) * 3.0  # the last expert is everyone's favourite
    records: list[dict[str, Any]] = [{}, {}]
    routing = layer.train().router(x_BTD, records[0])
    layer.eval().router(x_BTD, records[1])
    trained_E, best_E = (record["loads"]["feed_forward"][0] for record in records)
    assert trained_E.max() <= 30 and best_E.max() >= 60  # of 100 tokens, 20 an expert
    logits_NE = (x_BTD @ layer.router.weight.T).flatten(0, 1)
    assert torch.equal(records[1]["feed_forward"][:, 0], logits_NE.argmax(1))
    assert relative(routing.weight_NMK[:, 0], logits_NE.sigmoid().gather(1, records[0]["feed_forward"])) <= 1e-13


def test_s_base_of_a_sequence_does_not_see_the_others() -> None:
    of_sequence, of_batch = (
        layer_of(SBaseConfig(n_experts=5, d_expert=4, top_k=1, choice_scope=scope)) for scope in ("sequence", "micro_batch")
    )
    x_BTD = drawn(3, 12, 6)

    def choices(layer: RoutedFeedForward, x_BTD: Tensor) -> Tensor:
        record: dict[str, Any] = {}
        layer.train().router(x_BTD, record)
        return record["feed_forward"]

    alone = torch.cat([choices(of_sequence, x_1TD) for x_1TD in x_BTD.split(1)])
    assert torch.equal(choices(of_sequence, x_BTD), alone)
    assert not torch.equal(choices(of_batch, x_BTD), alone)


def test_the_start_counts_all_experts_or_one() -> None:
    for init, narrow, equal in (("moeut", (5 * 128) ** -0.5, True), ("standard", 128**-0.5, False)):
        layer = RoutedFeedForward(64, sigma(d_expert=128, init=init), LocalExchange())
        rules = layer.init_rules(1.0)
        assert rules["down.weight"].std == pytest.approx(narrow) and rules["router.weight"].equal_rows is equal
        assert rules["up.weight"].std == rules["router.weight"].std == 64**-0.5


def test_every_parameter_of_a_two_layer_router_is_counted_and_starts() -> None:
    model = tiny_model(feed_forward={**SIGMA_MOE, "router_hidden": 9, "score": "softmax"})
    slot = model.config.feed_forward
    assert sum(parameter.numel() for parameter in model.layers[0].feed_forward.parameters()) == slot.parameters(36).stored
    assert slot.macs(36, exact=True) - sigma(n_experts=7, d_expert=16, top_k=3).macs(36, exact=True) == 36 * 9 + 9 * 7 - 36 * 7


@pytest.mark.parametrize(
    ("name", "total", "layers"),
    [
        ("44M", 44_129_080, 37_528_256),
        ("126M", 126_069_056, 113_771_520),
        ("244M", 243_844_928, 227_450_880),
        ("319M", 319_661_888, 303_267_840),
        ("728M", 731_228_480, 710_737_920),
    ],
)
def test_a_kind_changes_no_count(name: str, total: int, layers: int) -> None:
    """The published non-shared models, whichever kind fills the slot."""
    config = PAPER_SIGMA_MOE[name]
    slot = config.feed_forward
    for kind in (SigmaMoEConfig, SwitchConfig, SBaseConfig):
        same = config.model_copy(update={"feed_forward": kind(n_experts=slot.n_experts, top_k=slot.top_k)})
        assert (parameters(same).stored, parameters(same).layers) == (total, layers)
        assert macs(same, 1024) == macs(config, 1024)


@pytest.mark.parametrize(("d_model", "d_ff", "n_experts", "share"), [(412, 2053, 16, 0.25), (512, 2053, 16, 0.25), (1024, 4110, 32, 0.125)])
def test_the_published_shares_of_dense_work(d_model: int, d_ff: int, n_experts: int, share: float) -> None:
    """K 4 of width 128 (arXiv 2310.10837 table 3): experts' products over the dense layer's, to the rounding of d_ff."""
    slot = SigmaMoEConfig(n_experts=n_experts, top_k=4)
    experts = slot.macs(d_model, exact=False) - d_model * n_experts
    assert experts == 2 * d_model * 512 and experts / (2 * d_model * d_ff) == pytest.approx(share, rel=5e-3)
    assert slot.parameters(d_model) == (2 * d_model * 128 * n_experts + d_model * n_experts, 2 * d_model * 512 + d_model * n_experts)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"softmax_over": "chosen"}, "softmax_over is 'chosen' but score is 'sigmoid'; set score to softmax"),
        ({"router_dropout": 0.2}, r"router_dropout is 0\.2 but there is no hidden layer; set router_hidden"),
        ({"kind": "s_base", "balance": {"kind": "bias"}}, "balance.kind is 'bias' but s_base evens its choice out already"),
        ({"kind": "switch", "top_k": 9}, "top_k is 9 but there are 7 experts"),
    ],
)
def test_options_that_do_not_meet_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        tiny_config(feed_forward={**SIGMA_MOE, **changes})
