"""The feed-forward kinds against their equations (arXiv 2405.16039 eq. 1-3)."""

from __future__ import annotations

import torch
from tiny_models import KINDS, relative, tiny_model

from model.visit import Visit


def test_sigma_moe_is_its_equation() -> None:
    """The K highest sigmoid scores, used as they are; the router reads n, the experts read x."""
    layer = tiny_model().layers[1].feed_forward
    x_BTD, n_BTD = torch.randn(2, 2, 5, 36, dtype=torch.float64)
    with torch.no_grad():
        y_BTD, statistics = layer(x_BTD, n_BTD, Visit())
        expected = torch.zeros_like(y_BTD)
        for b, t in ((b, t) for b in range(2) for t in range(5)):
            score_E = torch.sigmoid(layer.router.weight @ n_BTD[b, t])
            for e in score_E.argsort(descending=True)[:3].tolist():
                expected[b, t] += score_E[e] * (torch.relu(x_BTD[b, t] @ layer.up.weight[e]) @ layer.down.weight[e])
    assert relative(y_BTD, expected) <= 1e-12
    share_BE = (n_BTD @ layer.router.weight.T).softmax(-1).sum(1)
    assert relative(statistics["feed_forward"][:, 0], share_BE) <= 1e-12


def test_the_router_learns_through_chosen_scores_only() -> None:
    layer = tiny_model().layers[0].feed_forward
    x_BTD = torch.randn(1, 1, 36, dtype=torch.float64)
    record: dict[str, torch.Tensor] = {}
    layer(x_BTD, x_BTD, Visit(record=record))[0].sum().backward()
    moved = layer.router.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == sorted(record["feed_forward"][0].tolist())


def test_dense_is_two_layers_with_biases() -> None:
    layer = tiny_model(**KINDS["dense"]).layers[0].feed_forward
    x_BTD = torch.randn(2, 5, 36, dtype=torch.float64)
    hidden = (x_BTD @ layer.up.weight.T + layer.up.bias).clamp_min(0)
    y_BTD, statistics = layer(x_BTD, torch.zeros_like(x_BTD), Visit())
    assert relative(y_BTD, hidden @ layer.down.weight.T + layer.down.bias) <= 1e-12
    assert statistics == {}


def test_expert_dropout_masks_choices_in_training_only() -> None:
    layer = tiny_model(feed_forward={**tiny_model().config.feed_forward.model_dump(), "expert_dropout": 0.5}).layers[0].feed_forward
    x_BTD = torch.randn(1, 40, 36, dtype=torch.float64)
    kept: dict[str, torch.Tensor] = {}
    dropped: dict[str, torch.Tensor] = {}
    layer.train()(x_BTD, x_BTD, Visit(record=dropped))
    again: dict[str, torch.Tensor] = {}
    layer.train()(x_BTD, x_BTD, Visit(record=again))
    layer.eval()(x_BTD, x_BTD, Visit(record=kept))
    plain = (x_BTD[0] @ layer.router.weight.T).topk(3).indices
    assert torch.equal(kept["feed_forward"].sort().values, plain.sort().values)
    assert not torch.equal(dropped["feed_forward"].sort().values, plain.sort().values)
    assert not torch.equal(dropped["feed_forward"], again["feed_forward"])
