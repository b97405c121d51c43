"""Every feed-forward slot inside a whole model: choices recorded and obeyed, narrow types, one token at a time."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tiny_models import KINDS, gradients, relative, tiny_config, tiny_model, tiny_tokens

from model.accounting import macs, parameters
from model.config import ModelConfig
from model.feed_forward import DenseFeedForward
from model.generate import generate
from model.peer import Peer
from model.slots import FEED_FORWARDS, TABLES

CHOOSING = {"topk": (22, 7), "pkm": (22, 2, 4), "pkm_halves": (22, 3, 4), "peer": (22, 3, 5), "peer_shared_keys": (22, 2, 5)}


def test_every_kind_has_a_module_and_a_tiny_model() -> None:
    kinds = {tiny_config(**changes).feed_forward.kind for changes in KINDS.values()}
    assert kinds == (FEED_FORWARDS | TABLES).keys()


@pytest.mark.parametrize("kind", list(CHOOSING))
def test_choices_are_recorded_and_obeyed(kind: str) -> None:
    model, other, tokens_BT = tiny_model(**KINDS[kind]), tiny_model(seed=2, **KINDS[kind]), tiny_tokens()
    output, free = model(tokens_BT), other(tokens_BT)
    assert output.loads == []
    kept = [{"feed_forward": record["feed_forward"].clone()} for record in output.records]
    assert all(record["feed_forward"].shape == CHOOSING[kind] and record["feed_forward"].dtype == torch.int64 for record in kept)
    assert relative(model(tokens_BT, records=[dict(record) for record in kept]).logits, output.logits) <= 1e-13
    bound = other(tokens_BT, records=[dict(record) for record in kept])
    for record, taken, own in zip(kept, bound.records, free.records, strict=True):
        assert torch.equal(taken["feed_forward"], record["feed_forward"])
        assert not torch.equal(own["feed_forward"], record["feed_forward"])
    assert relative(bound.logits, free.logits) > 1e-3


@pytest.mark.parametrize("kind", [*CHOOSING, "pkm_dense"])
def test_every_parameter_learns(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
    found = gradients(model, tiny_tokens())
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.abs().max() > 0 for gradient in found.values())


@pytest.mark.parametrize("kind", list(CHOOSING))
def test_a_recomputed_visit_never_chooses(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(recompute="visit", **KINDS[kind])
    loss = model(tiny_tokens()).logits.sum()
    monkeypatch.setattr(torch.Tensor, "topk", lambda *_, **__: pytest.fail("a choice was made in the backward"))
    loss.backward()


@pytest.mark.parametrize("kind", [*CHOOSING, "pkm_dense"])
def test_bfloat16_follows_float32(kind: str) -> None:
    output = tiny_model(torch.bfloat16, **KINDS[kind])(tiny_tokens())
    exact = tiny_model(torch.float32, **KINDS[kind])
    exact.load_state_dict(tiny_model(torch.bfloat16, **KINDS[kind]).state_dict())
    records = [{name: choice for name, choice in record.items() if isinstance(choice, torch.Tensor)} for record in output.records]
    assert output.logits.dtype == torch.bfloat16
    assert relative(output.logits.float(), exact(tiny_tokens(), records=records).logits) <= 3e-2


@pytest.mark.parametrize("kind", [*CHOOSING, "pkm_dense"])
def test_one_token_at_a_time_gives_the_same_tokens(kind: str) -> None:
    """Nothing passes between tokens in a slot, so decoding with a cache sees what a whole forward sees."""
    model, start_BT = tiny_model(**KINDS[kind]), tiny_tokens(2, 4)
    grown_BT = generate(model, start_BT, 5, temperature=0)
    assert torch.equal(model(grown_BT[:, :-1]).logits[:, 3:].argmax(-1), grown_BT[:, 4:])


def test_one_layer_may_have_another_slot() -> None:
    """The protocol of the memory papers: one feed-forward in the middle is replaced, the others stay dense."""
    model = tiny_model(**KINDS["one_peer"])
    assert [type(layer.feed_forward) for layer in model.layers] == [DenseFeedForward, Peer, DenseFeedForward]
    dense = tiny_config(**{**KINDS["one_peer"], "feed_forward_at": {}})
    old, new = dense.feed_forward, model.config.feed_forward_at[1]
    ours, theirs = parameters(model.config), parameters(dense)
    more = new.parameters(36).stored - old.parameters(36).stored
    assert (ours.stored - theirs.stored, ours.layers - theirs.layers, ours.unrolled - theirs.unrolled) == (more, more, 2 * more)
    assert ours.active - theirs.active == 2 * (new.parameters(36).active - old.parameters(36).active)
    change = macs(model.config, 7).feed_forward - macs(dense, 7).feed_forward
    assert change == 7 * 2 * (new.macs(36, exact=True) - old.macs(36, exact=True))
    records = model(tiny_tokens()).records
    assert [visit for visit, record in enumerate(records) if "feed_forward" in record] == [1, 4]
    assert ModelConfig.model_validate_json(model.config.model_dump_json()) == model.config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"feed_forward_at": {3: {"kind": "dense", "d_ff": 5}}}, r"names layer 3; choose one of 0\.\.2"),
        (
            {"feed_forward_at": {0: {"kind": "sigma_moe", "n_experts": 4, "top_k": 1}}},
            "feed_forward_at.0 is 'sigma_moe'.*make 'sigma_moe' the",
        ),
        (
            {
                "feed_forward": {"kind": "switch", "n_experts": 4},
                "feed_forward_at": {layer: KINDS["dense"]["feed_forward"] for layer in range(3)},
            },
            r"feed_forward is 'switch', but feed_forward_at names all layers, 0\.\.2; leave out those",
        ),
    ],
)
def test_slots_that_do_not_go_together_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        tiny_config(**{**KINDS["one_peer"], **changes})
