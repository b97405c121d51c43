"""The entropy regulariser (arXiv 2405.16039 eq. 4): over tokens and visits, per sequence, per distinct layer."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import KINDS, relative, tiny_model, tiny_tokens
from torch import Tensor

from model.balance import BalanceSums
from model.balance_config import BalanceTerm, EntropyBalance
from model.moeut import MoEUT
from model.paper import PAPER


def sums(weight: float) -> BalanceSums:
    return BalanceSums({"feed_forward": BalanceTerm(weight, EntropyBalance())})


LIKE = torch.zeros(0, dtype=torch.float64)


def _router_inputs(model: MoEUT, tokens_BT: Tensor) -> dict[str, list[Tensor]]:
    """What every router's weights were multiplied with, one entry a visit."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if name.endswith("router"):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
    model(tokens_BT)
    return seen


@pytest.mark.parametrize("kind", ["peri", "prelude_and_coda", "dense_ends", "gated_expert"])
def test_the_definition(kind: str) -> None:
    """Mean softmax over all tokens and visits of a layer, then the entropy; 0.01 feed-forward, 0.001 each attention router."""
    model, tokens_BT = tiny_model(**KINDS[kind]), tiny_tokens(3)
    expected_B = torch.zeros(3, dtype=torch.float64)
    for name, visits in _router_inputs(model, tokens_BT).items():
        router = model.get_submodule(name)
        n_BSD = torch.cat(visits, dim=1)
        share = (n_BSD @ router.weight.T).unflatten(-1, (-1, router.n_experts)).softmax(-1).mean(1)
        entropy_B = torch.special.xlogy(share, share).sum(-1).mean(-1)
        expected_B = expected_B + (0.01 if "feed_forward" in name else 0.001) * entropy_B
    output = model(tokens_BT)
    assert relative(output.balance_B, expected_B) <= 1e-12
    assert relative(output.balance_loss, expected_B.mean()) <= 1e-12


def test_it_is_a_matter_of_one_sequence() -> None:
    model, tokens_BT = tiny_model(), tiny_tokens(3)
    together = model(tokens_BT).balance_B
    alone = torch.cat([model(row_BT).balance_B for row_BT in tokens_BT.split(1)])
    assert relative(together, alone) <= 1e-12


def test_zero_logits_give_the_lower_bound() -> None:
    model = tiny_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.zero_()
    bound = -2 * (0.01 * math.log(7) + 2 * 0.001 * math.log(3))
    assert model(tiny_tokens()).balance_loss.item() == pytest.approx(bound, abs=1e-12)


def test_collapse_gives_zero() -> None:
    balance = sums(0.01)
    all_on_one = torch.zeros(2, 1, 5, dtype=torch.float64)
    all_on_one[..., 3] = 11.0
    balance.add(0, {"feed_forward": all_on_one})
    balance_B, mean = balance.finish(2, 11, LIKE)
    assert balance_B.tolist() == [0.0, 0.0] and mean.item() == 0.0


def test_visits_of_one_layer_share_a_mean_and_layers_do_not() -> None:
    """Two visits, each all on its own expert: one layer sees an even half-half, two layers see two collapses."""
    first, second = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 2) * 4
    shared, apart = sums(1.0), sums(1.0)
    for visit, both in enumerate((first, second)):
        shared.add(0, {"feed_forward": both})
        apart.add(visit, {"feed_forward": both})
    assert shared.finish(1, 4, LIKE)[1].item() == pytest.approx(-math.log(2))
    assert apart.finish(1, 4, LIKE)[1].item() == 0.0


@pytest.mark.parametrize(("size", "at_start"), [("126M", -0.11995), ("244M", -0.12837)])
def test_values_at_the_start_of_training(size: str, at_start: float) -> None:
    """Measured with the official library. Experts are made narrow here, which the routers do not see."""
    paper = PAPER[size]
    narrow = paper.feed_forward.model_copy(update={"d_expert": 2})
    model = MoEUT(paper.model_copy(update={"feed_forward": narrow})).init_parameters(0)
    tokens_BT = torch.randint(8000, (1, 192), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(tokens_BT).balance_loss.item() == pytest.approx(at_start, abs=2e-5)
