"""Depth switches: an unrolled twin says what a repeated layer is, a shallower and a deeper one what other repeats are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import KINDS, SIGMA_MOE, SWITCHHEAD, gradients, relative, tiny_config, tiny_model, tiny_tokens, worst
from torch import Tensor

from model.accounting import macs, parameters
from model.config import ModelConfig
from model.convert import to_official_config
from model.depth_config import DepthConfig
from model.errors import ModelError
from model.generate import generate
from model.moeut import MoEUT
from model.visit import Visit

SILENT = {"attention": {**SWITCHHEAD, "balance_weight": 0.0}, "feed_forward": {**SIGMA_MOE, "balance_weight": 0.0}}
SWITCHES = ["router", "norm", "embedding", "residual_scale"]
DEPTHS: dict[str, dict[str, Any]] = {
    **{name: {"per_visit": [name]} for name in SWITCHES},
    "fixed": {"residual_scale": 0.7},
    "root": {"residual_scale": "1/sqrt(R)"},
    "inverse": {"residual_scale": "1/R", "per_visit": ["norm", "router"]},
    "all": {"per_visit": SWITCHES, "residual_scale": "1/R"},
}
ALTUP = {"kind": "recycled_altup", "streams": 3, "block": "by_visit"}
AROUND = {"prelude": 1, "group": 2, "repeats": 3, "coda": 1}


def _own(config: ModelConfig, name: str) -> bool:
    """Whether a parameter of a layer has one row of values a visit."""
    _, layer, rest = name.split(".", 2)
    if not config.depth.is_repeated(int(layer)):
        return False
    places = {"router": "router.weight", "norm": "_norm.", "embedding": "depth.embedding", "residual_scale": "depth.residual_scale"}
    return any(places[switch] in rest for switch in config.depth.per_visit)


def _unrolled(model: MoEUT) -> MoEUT:
    """A model without repeats, a layer for every visit, with the visits' weights."""
    config = model.config
    fields = config.model_dump()
    scale = {"1/R": 1 / 3, "1/sqrt(R)": 3**-0.5}.get(config.depth.residual_scale, config.depth.residual_scale)
    fields["depth"] |= {"group": 6, "repeats": 1, "order": "cycle", "residual_scale": scale}
    twin = MoEUT(ModelConfig.model_validate(fields)).double()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("layers.")}
    for number, layer, repeat in config.depth.visits():
        for rest, value in model.layers[layer].state_dict().items():
            own = _own(config, f"layers.{layer}.{rest}")
            state[f"layers.{number}.{rest}"] = value[repeat : repeat + 1] if own else value
    twin.load_state_dict(state)
    return twin


TWINS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "cycle", {}) for name in DEPTHS if name != "all"),
    ("all", "cycle", {"norm": "post"}),
    ("all", "loop", {"norm": "pre", "residual": ALTUP}),
    ("all", "loop", {"residual": ALTUP, "recompute": "visit"}),
]


@pytest.mark.parametrize(("name", "order", "changes"), TWINS)
def test_an_unrolled_twin_has_the_logits_and_the_summed_gradients(name: str, order: str, changes: dict[str, Any]) -> None:
    model = tiny_model(depth={**AROUND, **DEPTHS[name], "order": order}, **SILENT, **changes)
    twin, tokens_BT = _unrolled(model), tiny_tokens()
    assert relative(model(tokens_BT).logits, twin(tokens_BT).logits) <= 1e-13
    of_model, of_twin = gradients(model, tokens_BT), gradients(twin, tokens_BT)
    for key, gradient in of_model.items():
        if not key.startswith("layers."):
            assert relative(gradient, of_twin[key]) <= 1e-12, key
            continue
        _, layer, rest = key.split(".", 2)
        parts = [of_twin[f"layers.{number}.{rest}"] for number, at, _ in model.config.depth.visits() if at == int(layer)]
        assert relative(gradient, torch.cat(parts) if _own(model.config, key) else sum(parts)) <= 1e-12, key


@pytest.mark.parametrize("norm", ["peri", "pre", "post"])
def test_a_visit_adds_its_embedding_and_scales_what_it_adds(norm: str) -> None:
    """A plain layer that is given x + e and whose two last matrices are s times as large; 0.7 where s is not learned."""
    dense = {"attention": KINDS["dense"]["attention"], "feed_forward": KINDS["dense"]["feed_forward"], "norm": norm}
    for own in ([], ["embedding", "residual_scale"]):
        depth = {"group": 1, "repeats": 3, "per_visit": own, "residual_scale": 0.7}
        layer, x_BTD = tiny_model(depth=depth, **dense).layers[0], torch.randn(2, 5, 36, dtype=torch.float64)
        where = tiny_model(**dense)._positions(tiny_tokens(2, 5), None, None)
        for repeat in range(3):
            plain = tiny_model(depth={"group": 1, "repeats": 1}, **dense).layers[0]
            plain.load_state_dict({name: value for name, value in layer.state_dict().items() if not name.startswith("depth.")})
            scale, e_D = (layer.depth.residual_scale[repeat], layer.depth.embedding[repeat]) if own else (0.7, 0.0)
            with torch.no_grad():
                for last in (plain.attention.output.weight, plain.feed_forward.down.weight, plain.feed_forward.down.bias):
                    last *= scale
                found_BTD, _ = layer(x_BTD, where, Visit(repeat=repeat, repeats=3))
                assert relative(found_BTD, plain(x_BTD + e_D, where, Visit())[0]) <= 1e-13


@pytest.mark.parametrize("norm", ["peri", "pre", "post"])
@pytest.mark.parametrize("own", [["embedding"], ["norm"], ["residual_scale"]])
def test_a_new_model_is_that_without_the_switch(own: list[str], norm: str) -> None:
    """One seed, the same bits; routers are drawn anew, of one norm for every row."""
    plain = MoEUT(tiny_config(norm=norm)).init_parameters(4)
    model = MoEUT(tiny_config(norm=norm, depth={"group": 2, "repeats": 3, "per_visit": own})).init_parameters(4)
    assert torch.equal(model(tiny_tokens()).logits, plain(tiny_tokens()).logits)


def test_routers_of_visits_are_drawn_alike() -> None:
    model = MoEUT(tiny_config(depth={"group": 1, "repeats": 4, "per_visit": ["router"]})).init_parameters(4)
    weight_RED = model.layers[0].feed_forward.router.weight
    norms_RE = weight_RED.norm(dim=-1)
    assert relative(norms_RE, norms_RE.mean().expand(4, 7)) <= 1e-6
    assert relative(weight_RED.std(), torch.tensor((2 / 4) ** 0.5 / 6)) <= 0.1
    assert relative(weight_RED[0], weight_RED[1]) > 0.5


def _at(model: MoEUT, repeats: int) -> MoEUT:
    """A model configured for so many repeats with `model`'s weights of the visits that it makes."""
    fields = model.config.model_dump()
    fields["depth"] |= {"repeats": repeats, "sample": None}
    other = MoEUT(ModelConfig.model_validate(fields)).double()
    made = [number for number, is_made in enumerate(model.config.depth.made(repeats)) if is_made]
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("streams.") and model.config.residual.coefficients == "visit":
            value = value[made]
        state[name] = value[:repeats] if name.startswith("layers.") and _own(model.config, name) else value
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(("repeats", "order"), [(1, "loop"), (2, "cycle"), (2, "loop")])
def test_fewer_repeats_are_a_shallower_model(repeats: int, order: str) -> None:
    """Logits, loads and gradients; visits that are not made have zeros: parameters, loads, empty records and caches."""
    depth = {**AROUND, "order": order, "per_visit": SWITCHES}
    model = tiny_model(depth=depth, residual={"kind": "altup", "streams": 2})
    shallow, tokens_BT = _at(model, repeats), tiny_tokens()
    output, expected = model(tokens_BT, repeats=repeats), shallow(tokens_BT)
    made = model.config.depth.made(repeats)
    assert relative(output.logits, expected.logits) <= 1e-13
    assert relative(output.balance_B, expected.balance_B) <= 1e-13
    assert [bool(record) for record in output.records] == made
    loads = iter(expected.loads)
    for load_E, is_made in zip(output.loads, made, strict=True):
        assert torch.equal(load_E, next(loads) if is_made else torch.zeros_like(load_E))
    of_model, of_shallow = gradients(model, tokens_BT, repeats=repeats), gradients(shallow, tokens_BT)
    assert of_model.keys() == dict(model.named_parameters()).keys()
    numbers = [number for number, is_made in enumerate(made) if is_made]
    for name, gradient in of_model.items():
        rows = numbers if name.startswith("streams.") else slice(repeats) if gradient.shape != of_shallow[name].shape else slice(None)
        assert relative(gradient[rows], of_shallow[name]) <= 1e-12, name
        assert gradient.count_nonzero() == gradient[rows].count_nonzero(), name


@pytest.mark.parametrize(
    ("order", "changes"), [("cycle", {}), ("loop", {"residual": {"kind": "altup", "streams": 2, "coefficients": "layer"}})]
)
def test_more_repeats_are_a_deeper_model_where_visits_share_all(order: str, changes: dict[str, Any]) -> None:
    depth = {**AROUND, "repeats": 2, "order": order, "residual_scale": "1/R"}
    model, tokens_BT = tiny_model(depth=depth, **changes).eval(), tiny_tokens(2, 5)
    fields = model.config.model_dump()
    fields["depth"] |= {"repeats": 5}
    deep = MoEUT(ModelConfig.model_validate(fields)).double().eval()
    deep.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert relative(model(tokens_BT, repeats=5).logits, deep(tokens_BT).logits) <= 1e-13
        assert len(model(tokens_BT, repeats=5).loads) == 12
    assert torch.equal(generate(model, tokens_BT, 4, temperature=0, repeats=5), generate(deep, tokens_BT, 4, temperature=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": {**AROUND, "per_visit": ["norm"]}}, r"repeats is 4, but the model has parameters for 3 \(depth.per_visit: norm\)"),
        ({"depth": AROUND, "residual": {"kind": "altup"}}, r"residual.coefficients: visit\); give 3 or fewer"),
    ],
)
def test_repeats_without_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    model = tiny_model(**changes)
    with pytest.raises(ModelError, match=message):
        model(tiny_tokens(), repeats=4)
    with pytest.raises(ModelError, match="repeats is 0; give 1 or more"):
        model(tiny_tokens(), repeats=0)


def test_a_visit_keeps_its_number_whatever_the_repeats() -> None:
    for order in ("cycle", "loop"):
        depth = DepthConfig(**AROUND, order=order)
        number = {place[1:]: place.number for place in depth.visits()}
        assert list(number.values()) == list(range(8)) and number[3, 0] == 7
        for repeats in range(1, 6):
            visits = depth.visits(repeats)
            assert [place.layer for place in visits] == depth.schedule(repeats)
            assert all(place.number == number[place[1:]] for place in visits if place[1:] in number)
            assert len({place.number for place in visits}) == len(visits)
            assert max(place.number for place in visits) < depth.n_numbers(repeats) == 2 + 2 * max(repeats, 3)


def _constants_by_hand(model: MoEUT, tokens_BT: Tensor, kept: int, repeats: int) -> dict[str, Tensor]:
    """Gradients of the mean of squared logits where a visit before the last `kept` adds a detached difference to the streams."""
    where, x = model._positions(tokens_BT, None, None), model._embed(tokens_BT)
    for number, layer, repeat in model.config.depth.visits(repeats):
        y, _ = model._pass(x, where, Visit(None, {}, number, repeat, layer, repeats))
        early = layer in (1, 2) and repeat < repeats - kept
        x = x + (y - x).detach() if early else y
    model.zero_grad()
    model.head(model.streams.leave(x, model.final_norm)).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("kept", "repeats", "order", "changes"),
    [
        (1, 3, "cycle", {}),
        (1, 3, "loop", {"norm": "pre", "recompute": "visit"}),
        (2, 3, "cycle", {"residual": {"kind": "altup"}}),
        (2, 2, "cycle", {}),
        (2, 1, "loop", {}),
    ],
)
def test_a_truncated_backward_is_that_of_detached_visits(kept: int, repeats: int, order: str, changes: dict[str, Any]) -> None:
    own = {**AROUND, "per_visit": SWITCHES, "order": order}
    whole, model = tiny_model(depth=own, **changes), tiny_model(depth={**own, "backprop_repeats": kept}, **changes)
    tokens_BT = tiny_tokens()
    expected = _constants_by_hand(whole, tokens_BT, kept, repeats)
    logits = model(tokens_BT, repeats=repeats).logits
    assert torch.equal(logits, whole(tokens_BT, repeats=repeats).logits)
    logits.square().mean().backward()
    difference, where = worst({name: parameter.grad for name, parameter in model.named_parameters()}, expected)
    assert difference <= 1e-12, where


def test_a_truncated_backward_reaches_all_parameters_of_an_empty_batch() -> None:
    model = tiny_model(depth={**AROUND, "per_visit": SWITCHES, "backprop_repeats": 1})
    output = model(tiny_tokens(0))
    (output.logits.sum() + output.balance_loss).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": {"repeats": 4, "sample": {"kind": "uniform", "max": 3}}}, "repeats is 4 but sample.max is 3; choose repeats <= 3"),
        ({"depth": {"sample": {"kind": "uniform", "min": 4, "max": 3}}}, "min is 4 but max is 3; choose min <= 3"),
        ({"depth": {"residual_scale": "1/3"}}, "1/sqrt"),
        ({"depth": {"residual_scale": 0.0}}, "greater than 0"),
        ({**KINDS["dense"], "depth": {"per_visit": ["router"]}}, "neither attention 'dense' nor feed_forward 'dense' of"),
        (
            {
                "attention": KINDS["dense"]["attention"],
                "depth": {"group": 2, "prelude": 1, "per_visit": ["router"]},
                "feed_forward_at": {1: {"kind": "dense", "d_ff": 5}, 2: {"kind": "topk", "d_ff": 5, "top_k": 2}},
            },
            "nor feed_forward 'dense', 'topk' of the repeated layers has one",
        ),
        ({"norm": "post", "depth": {"backprop_repeats": 2}}, "backprop_repeats is 2 with norm 'post'.*choose norm peri or pre"),
    ],
)
def test_switches_that_fit_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "depth",
    [{"per_visit": ["norm"]}, {"residual_scale": "1/R"}, {"sample": {"kind": "uniform", "max": 8}}, {"backprop_repeats": 1}],
)
def test_the_official_library_has_no_switches(depth: dict[str, Any]) -> None:
    config = tiny_config(attention={**SWITCHHEAD}, depth=depth)
    with pytest.raises(ModelError, match=rf"depth\.{next(iter(depth))} is .*; the official library visits its layers alike"):
        to_official_config(config)


def test_what_switches_cost() -> None:
    """Routers: 2 H N_A + N_E rows of d; norms 4 d; an embedding d; a scale 1. Products: two scalings of d a visit of the group."""
    rows = {"router": (2 * 2 * 3 + 7) * 36, "norm": 4 * 36}
    plain = parameters(tiny_config(depth=AROUND))
    for name in SWITCHES:
        count = parameters(tiny_config(depth={**AROUND, "per_visit": [name]}))
        added = {"embedding": 36, "residual_scale": 1}.get(name, 0)
        assert count.stored - plain.stored == count.layers - plain.layers == 2 * (2 * rows.get(name, 0) + 3 * added)
        assert count.unrolled - plain.unrolled == count.active - plain.active == 2 * 3 * added
    config, scaled = tiny_config(depth=AROUND), tiny_config(depth={**AROUND, "residual_scale": "1/R"})
    assert macs(scaled, 10).total - macs(config, 10).total == 2 * 3 * 2 * 36 * 10
    assert macs(config, 10, repeats=5) == macs(tiny_config(depth={**AROUND, "repeats": 5}), 10)
