"""AltUp against its equations (arXiv 2301.13310), its starting point and the single stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import SWITCHHEAD, gradients, relative, tiny_config, tiny_model, tiny_tokens, worst
from torch import Tensor

from model.accounting import macs, parameters
from model.cache import KVCache
from model.convert import to_official_config
from model.depth_config import DepthConfig
from model.errors import ModelError
from model.moeut import MoEUT
from model.stream_config import AltUpConfig
from model.streams import AltUp, active_stream
from model.visit import Visit

KINDS = ["altup", "recycled_altup"]
SAMENESS = [
    {"streams": 2},
    {"streams": 3, "block": "same", "compute_input": "predicted"},
    {"streams": 4, "block": "by_visit", "coefficients": "layer"},
    {"streams": 2, "compute_input": "predicted", "routed": True},
]


def _altup(n_visits: int = 4, width: int = 7, **fields: Any) -> AltUp:
    """Drawn coefficients in float64."""
    streams = AltUp(AltUpConfig(**{"kind": "altup", "streams": 3, **fields}), DepthConfig(group=n_visits, repeats=1), width).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in streams.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return streams


def _visit(number: int) -> Visit:
    """Of a model without repeats."""
    return Visit(number=number, layer=number)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("compute_input", ["old", "predicted"])
def test_a_visit_is_its_equations(compute_input: str) -> None:
    """Stream by stream: predict with P, compute the active one, correct by g times what the prediction missed."""
    streams, x_KBTD = _altup(compute_input=compute_input), _drawn(3, 2, 5, 7)
    for visit, active in enumerate([0, 1, 2, 0]):
        p_KK, g_K = torch.eye(3) + streams.coefficients.predict[visit], 1 + streams.coefficients.correct[visit]
        predicted = [sum(p_KK[i, k] * x_KBTD[k] for k in range(3)) for i in range(3)]
        y_BTD = torch.tanh(predicted[active] if compute_input == "predicted" else x_KBTD[active])
        expected = [predicted[i] + g_K[i] * (y_BTD - predicted[active]) for i in range(3)]
        read_BTD, between = streams.read(_visit(visit), x_KBTD)
        x_KBTD = streams.write(_visit(visit), between, torch.tanh(read_BTD))
        assert relative(x_KBTD, torch.stack(expected)) <= 1e-14


def test_the_active_stream_becomes_the_layers_result() -> None:
    """To the bit where its g is 1, whatever P is; the other streams are not it."""
    streams, x_KBTD, y_BTD = _altup(), _drawn(3, 2, 5, 7), _drawn(2, 5, 7)
    with torch.no_grad():
        streams.coefficients.correct.zero_()
    for visit, active in enumerate([0, 1, 2, 0]):
        after_KBTD = streams.write(_visit(visit), streams.read(_visit(visit), x_KBTD)[1], y_BTD)
        assert [torch.equal(after_BTD, y_BTD) for after_BTD in after_KBTD] == [stream == active for stream in range(3)]


class _TwoVisits(torch.nn.Module):
    def __init__(self, streams: AltUp) -> None:
        super().__init__()
        self.streams = streams

    def forward(self, x_KBTD: Tensor) -> Tensor:
        for visit in (1, 2):
            read_BTD, between = self.streams.read(_visit(visit), x_KBTD)
            x_KBTD = self.streams.write(_visit(visit), between, torch.sin(read_BTD))
        return x_KBTD


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("compute_input", ["old", "predicted"])
def test_gradients_of_visits(compute_input: str, routed: bool) -> None:
    visits = _TwoVisits(_altup(3, width=3, compute_input=compute_input, routed=routed))
    names = [name for name, _ in visits.named_parameters()]

    def of(x_KBTD: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(visits, dict(zip(names, values, strict=True)), x_KBTD)

    assert torch.autograd.gradcheck(of, (_drawn(3, 2, 2, 3).requires_grad_(), *visits.parameters()))


def _gemma(width: int) -> torch.nn.Module:
    """Gemma 3n's AltUp of three streams, the second of them active, with drawn weights."""
    gemma = pytest.importorskip("transformers.models.gemma3n.modeling_gemma3n", reason="transformers is not installed")
    from transformers import Gemma3nTextConfig

    config = Gemma3nTextConfig(hidden_size=width, altup_num_inputs=3, altup_active_idx=1, num_hidden_layers=1, vocab_size=8)
    altup = gemma.Gemma3nTextAltUp(config)
    for parameter in altup.parameters():
        torch.nn.init.normal_(parameter)
    return altup


def _agree(ours: AltUp, theirs: Any, dtype: torch.dtype, bar: float) -> None:
    """Predict and correct apart, at visit 1, whose active stream is the second."""
    x_KBTD, y_BTD = _drawn(3, 2, 5, 24).to(dtype), _drawn(2, 5, 24).to(dtype)
    with torch.no_grad():
        _, predicted_KBTD = ours.read(_visit(1), x_KBTD)
        assert relative(predicted_KBTD, theirs.predict(x_KBTD)) <= bar
        assert relative(ours.write(_visit(1), predicted_KBTD, y_BTD), theirs.correct(predicted_KBTD, y_BTD)) <= bar


def test_constant_coefficients_are_gemma_3n_with_a_constant_router(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, modalities_K = _gemma(24).double(), _drawn(3).tanh()
    monkeypatch.setattr(theirs, "compute_router_modalities", lambda x_BTD: modalities_K.expand(*x_BTD.shape[:2], 3))
    ours = _altup(compute_input="predicted")
    with torch.no_grad():
        ours.coefficients.predict[1] = theirs.prediction_coefs(modalities_K).view(3, 3)
        ours.coefficients.correct[1] = theirs.correction_coefs(modalities_K)
    _agree(ours, theirs, torch.float64, 1e-14)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_routed_coefficients_are_those_of_gemma_3n(scale: float, dtype: torch.dtype, bar: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights of either side of the clip. Theirs narrows to float32 on its way, unless it is kept from it."""
    theirs = _gemma(24).to(dtype)
    if dtype == torch.float64:
        monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
        theirs.router_input_scale = torch.tensor(1 / 24, dtype=dtype)
    ours = _altup(width=24, routed=True, compute_input="predicted").to(dtype)
    with torch.no_grad():
        for linear in (theirs.prediction_coefs, theirs.correction_coefs):
            linear.weight *= scale
        ours.coefficients.norm[1] = theirs.router_norm.weight.normal_()
        ours.coefficients.router[1] = theirs.modality_router.weight.mul_(24)
        ours.coefficients.predict[1] = theirs.prediction_coefs.weight
        ours.coefficients.correct[1] = theirs.correction_coefs.weight
    _agree(ours, theirs.train(), dtype, bar)


@pytest.mark.parametrize("fields", SAMENESS)
@pytest.mark.parametrize("norm", ["peri", "pre", "post"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_is_that_of_one_stream(kind: str, norm: str, fields: dict[str, Any]) -> None:
    """One seed: what the head reads has the single stream's bits, and so have the logits of a head of one width."""
    single = MoEUT(tiny_config(norm=norm)).init_parameters(4).double()
    model = MoEUT(tiny_config(norm=norm, residual={"kind": kind, **fields})).init_parameters(4).double()
    read: list[Tensor] = []
    for each in (single, model):
        each.head.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    tokens_BT = tiny_tokens()
    expected_BTV, logits_BTV = single(tokens_BT).logits, model(tokens_BT).logits
    copies = fields["streams"] if kind == "altup" else 1
    assert torch.equal(read[1], read[0].repeat(1, 1, copies))
    if copies == 1:
        assert torch.equal(logits_BTV, expected_BTV)
    bar = 1e-6 if copies == 3 else 1e-14  # a third of the head is not a float32 number, halves and quarters are
    assert relative(logits_BTV, expected_BTV) <= bar


@pytest.mark.parametrize("kind", KINDS)
def test_streams_part_with_the_first_step(kind: str) -> None:
    """They start equal, but are not active at the same visits: coefficients and parts of the table get gradients of their own."""
    model = MoEUT(tiny_config(residual={"kind": kind, "streams": 3})).init_parameters(4).double()
    found = gradients(model, tiny_tokens())
    assert all(not torch.equal(set_KK[0], set_KK[1]) for set_KK in found["streams.coefficients.predict"])
    assert (found["streams.coefficients.correct"].sum(1) != 0).all()
    parts = found["embedding.weight"].split(36, dim=1)
    assert all(relative(part, parts[0]) > 1e-3 for part in parts[1:])


def test_recycled_is_plain_with_tied_tables() -> None:
    """Equal streams enter both; the mean of the streams is one head on the parts of all. The norm between, which is not linear, is out."""
    recycled = tiny_model(residual={"kind": "recycled_altup", "streams": 3})
    plain = tiny_model(residual={"kind": "altup", "streams": 3})
    tied = recycled.state_dict()
    tied["embedding.weight"] = tied["embedding.weight"].repeat(1, 3)
    tied["head.weight"] = tied["head.weight"].repeat(1, 3) / 3
    plain.load_state_dict(tied)
    recycled.final_norm, plain.final_norm = torch.nn.Identity(), torch.nn.Identity()
    assert relative(plain(tiny_tokens()).logits, recycled(tiny_tokens()).logits) <= 1e-13


def test_visits_of_a_layer_may_share_coefficients() -> None:
    residual = {"kind": "altup", "streams": 2}
    shared, own = tiny_model(residual={**residual, "coefficients": "layer"}), tiny_model(residual=residual)
    state, of_visit = shared.state_dict(), shared.config.depth.schedule()
    for name in ("streams.coefficients.predict", "streams.coefficients.correct"):
        state[name] = state[name][of_visit]
    own.load_state_dict(state)
    assert torch.equal(own(tiny_tokens()).logits, shared(tiny_tokens()).logits)
    of_own, of_shared = gradients(own, tiny_tokens()), gradients(shared, tiny_tokens())
    for layer in range(2):
        summed = sum(of_own["streams.coefficients.predict"][visit] for visit in range(6) if of_visit[visit] == layer)
        assert relative(of_shared["streams.coefficients.predict"][layer], summed) <= 1e-12


@pytest.mark.parametrize("order", ["cycle", "loop"])
@pytest.mark.parametrize(("group", "streams"), [(1, 2), (2, 2), (2, 4), (3, 2), (4, 2), (6, 4)])
def test_streams_that_a_shared_layer_meets(group: int, streams: int, order: Any) -> None:
    """All of them; by unrolled index in a cycle only K / gcd(G, K)."""
    by_visit = {(1, 2): 2, (2, 2): 1, (2, 4): 2, (3, 2): 2, (4, 2): 1, (6, 4): 2}[group, streams]
    visits = DepthConfig(prelude=1, group=group, repeats=5, coda=1, order=order).visits()
    for block, expected in (("alternating", streams), ("same", 1), ("by_visit", by_visit if order == "cycle" else streams)):
        met: dict[int, set[int]] = {}
        for number, layer, repeat in visits[1:-1]:
            met.setdefault(layer, set()).add(active_stream(Visit(number=number, repeat=repeat, layer=layer), streams, block))
        assert {len(found) for found in met.values()} == {expected}, block


def test_without_repeats_streams_alternate() -> None:
    visits = [Visit(number=number, layer=number) for number in range(7)]
    for block in ("alternating", "by_visit"):
        assert [active_stream(visit, 3, block) for visit in visits] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("coefficients", ["visit", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_streams_cost(kind: str, coefficients: str) -> None:
    """K^2 + K parameters a set, (K - 1) d V more in table and head of `altup`; (K^2 + 2K) d multiply-adds a token and visit."""
    single = tiny_config()
    wide = tiny_config(residual={"kind": kind, "streams": 4, "coefficients": coefficients})
    before, after = parameters(single), parameters(wide)
    sets, table = (6 if coefficients == "visit" else 2), (3 * 36 * 61 if kind == "altup" else 0)
    assert after.stored - before.stored == sets * (16 + 4) + 2 * table
    assert after.stored == sum(parameter.numel() for parameter in MoEUT(wide).parameters())
    assert after.unrolled - before.unrolled == 6 * (16 + 4) + 2 * table
    assert after.active - before.active == 6 * (16 + 4) + table + table // 61
    assert after.layers == before.layers
    assert macs(wide, 10).body - macs(single, 10).body == macs(wide, 10).residual == 6 * 10 * (16 + 8) * 36
    assert macs(wide, 10).head - macs(single, 10).head == 10 * table


@pytest.mark.parametrize("fields", SAMENESS)
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_visits_change_nothing(kind: str, fields: dict[str, Any]) -> None:
    changes = {"residual": {"kind": kind, **fields}, "dropout": 0.3}
    found = []
    for recompute in ("none", "experts", "visit"):
        torch.manual_seed(11)
        found.append(gradients(tiny_model(recompute=recompute, **changes), tiny_tokens()))
    for again in found[1:]:
        difference, where = worst(again, found[0])
        assert difference <= 1e-12, where


@pytest.mark.parametrize("feed_forward", [None, {"kind": "dense", "d_ff": 50}])
@pytest.mark.parametrize("fields", SAMENESS)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_equals_the_full_forward(kind: str, fields: dict[str, Any], feed_forward: dict[str, Any] | None) -> None:
    changes = {} if feed_forward is None else {"feed_forward": feed_forward}
    model, tokens_BT = tiny_model(residual={"kind": kind, **fields}, **changes).eval(), tiny_tokens(2, 9)
    cache = KVCache(6)
    with torch.no_grad():
        one_by_one = [model(token_B1, cache=cache).logits for token_B1 in tokens_BT.split(1, dim=1)]
        assert relative(torch.cat(one_by_one, dim=1), model(tokens_BT).logits) <= 1e-12


def test_what_routed_coefficients_cost() -> None:
    """A set: a norm d, a router K d, matrices K^3 and K^2; the router is read twice a visit."""
    plain, routed = (tiny_config(residual={"kind": "altup", "streams": 4, "routed": routed}) for routed in (False, True))
    assert parameters(routed).stored - parameters(plain).stored == 6 * (5 * 36 + 64 + 16 - 16 - 4)
    assert parameters(routed).stored == sum(parameter.numel() for parameter in MoEUT(routed).parameters())
    assert macs(routed, 10).residual - macs(plain, 10).residual == 6 * 10 * (2 * 4 * 36 + 64 + 16)


def test_an_empty_batch_gives_routers_a_zero_gradient() -> None:
    model = tiny_model(residual={"kind": "recycled_altup", "streams": 2, "routed": True})
    model(tiny_tokens(0)).logits.sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if name.startswith("streams.")}
    assert len(found) == 4 and all(grad is not None and (grad == 0).all() for grad in found.values())


@pytest.mark.parametrize("fields", SAMENESS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_read_streams_without_gaps(kind: str, fields: dict[str, Any]) -> None:
    """A kernel would copy any other."""
    model = tiny_model(residual={"kind": kind, **fields})
    found: list[bool] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0].is_contiguous()))
    model(tiny_tokens())
    assert found == [True] * 6


def test_coefficients_are_whole_on_every_rank() -> None:
    model = tiny_model(residual={"kind": "altup", "streams": 2})
    boxes = model.boxes()
    assert [boxes[f"streams.coefficients.{name}"].shape for name in ("predict", "correct")] == [(6, 2, 2), (6, 2)]
    assert all(boxes[name].shape == boxes[name].global_shape for name in boxes if name.startswith("streams."))
    assert model.partitioned_parameters() == {}


def test_one_stream_is_not_altup() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        tiny_config(residual={"kind": "altup", "streams": 1})
    config = tiny_config(residual={"kind": "altup"}, attention={**SWITCHHEAD, "rotary": {"fraction": 0.5}})
    with pytest.raises(ModelError, match=r"residual\.kind is 'altup'; the official library has single only"):
        to_official_config(config)
