"""Names, shapes and refusals of the converter; that its numbers are right is `test_golden.py`'s matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import KINDS, gradients, relative, tiny_config, tiny_model, tiny_tokens, worst

from model.config import ModelConfig
from model.convert import from_official_config, load_official, official_gradients, to_official, to_official_config
from model.errors import ModelError
from model.exchange import LocalExchange
from model.moeut import MoEUT

OFFICIAL = {"n_tokens": 61, "d_model": 36, "n_layers": 6, "n_heads": 2, "ff_n_experts": 9, "att_n_experts": 3}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["peri", "output_gate"])
def test_there_and_back_keeps_bits_and_type(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(dtype, **KINDS[kind])
    config, state_dict = to_official(model)
    again = load_official(config, state_dict)
    assert again.config == model.config
    for name, parameter in model.named_parameters():
        assert again.get_parameter(name).dtype == dtype
        assert torch.equal(again.get_parameter(name), parameter), name


def test_a_float32_model_from_the_library_is_the_model_itself() -> None:
    """The pieces that the library keeps in float32 differ only where the rest is wider."""
    model = tiny_model(torch.float32)
    official = load_official(*to_official(model))
    tokens_BT = tiny_tokens()
    assert relative(official(tokens_BT).logits, model(tokens_BT).logits) <= 1e-6
    difference, where = worst(gradients(official, tokens_BT), gradients(model, tokens_BT))
    assert difference <= 1e-5, where


def test_an_empty_batch_runs_through_a_model_from_the_library() -> None:
    official = load_official(*to_official(tiny_model()))
    assert all((gradient == 0).all() for gradient in gradients(official, tiny_tokens(0)).values())


def test_gradients_have_the_official_names_and_shapes() -> None:
    model = tiny_model()
    gradients(model, tiny_tokens())
    _, state_dict = to_official(model)
    named = official_gradients(model)
    assert {name: gradient.shape for name, gradient in named.items()} == {name: tensor.shape for name, tensor in state_dict.items()}
    assert torch.equal(named["transformer.layers.1.ffn.keys"], model.get_parameter("layers.1.feed_forward.up.weight").grad)


def test_gradients_are_asked_for_too_early() -> None:
    with pytest.raises(ModelError, match=r"embedding\.weight has no gradient"):
        official_gradients(tiny_model())


def test_the_official_defaults() -> None:
    config = from_official_config(OFFICIAL)
    assert to_official_config(config) == {
        **OFFICIAL,
        "d_head": 18,
        "group_size": 2,
        "ff_k": 8,
        "att_k": 2,
        "ff_expert_dropout": 0.0,
        "att_expert_dropout": 0.0,
        "ff_expert_size": 128,
        "dropout": 0.0,
        "entropy_reg": 0.01,
        "att_entropy_reg": 0.001,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ff_n_expert": 3}, "unknown argument 'ff_n_expert'; did you mean ff_n_experts"),
        ({"ff_k": 10}, "top_k is 10 but there are 9 experts"),
        ({"n_heads": 0}, "n_heads"),
        ({"group_size": 0}, "group"),
        ({"group_size": 7}, "repeats"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_official_config({"d_head": 18, **OFFICIAL, **change})


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ModelError, match="d_model must be given"):
        from_official_config({key: value for key, value in OFFICIAL.items() if key != "d_model"})


@pytest.mark.parametrize("fault", ["missing", "surplus", "shape", "integers"])
def test_a_state_dict_that_does_not_fit_is_refused(fault: str) -> None:
    config, state_dict = to_official(tiny_model())
    name = "transformer.layers.0.ffn.keys"
    if fault == "missing":
        del state_dict[name]
    elif fault == "surplus":
        state_dict[name + "2"] = state_dict[name]
    elif fault == "shape":
        state_dict[name] = state_dict[name][:, :, :-1]
    else:
        state_dict[name] = state_dict[name].long()
    with pytest.raises(ModelError, match=r"transformer\.layers\.0\.ffn\.keys"):
        load_official(config, state_dict)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(**KINDS["dense"]),
        tiny_config(**KINDS["pre"]),
        tiny_config(**KINDS["gated_expert"]),
        tiny_config(**KINDS["prelude_and_coda"]),
        tiny_config(feed_forward_at={1: {"kind": "dense", "d_ff": 5}}),
        tiny_config(attention={"kind": "switchhead", "n_heads": 2, "d_head": 13, "n_experts": 3, "rotary": {"fraction": 1.0}}),
    ],
)
def test_what_the_library_does_not_have_is_refused(config: ModelConfig) -> None:
    with pytest.raises(ModelError, match="the official library"):
        to_official_config(config)


def test_a_part_of_the_experts_is_not_converted() -> None:
    class Half(LocalExchange):
        size = 2

        def owned(self, n_experts: int) -> range:
            return range(n_experts // 2)

    with pytest.raises(ModelError, match="only a part of the experts"):
        to_official(MoEUT(tiny_config(), Half()))
