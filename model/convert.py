"""To and from the official MoEUT library (RobertCsordas/moeut @87f0497, class `MoEUTLM`): names, shapes, configuration.

The tensors of both sides have the same layout; only names differ. Types are kept: a float64 state dict makes a float64
model. With one attention expert the official form is the output gate (`single_expert: output_gate`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model.attention_config import SwitchHeadConfig
from model.balance_config import EntropyBalance
from model.config import ModelConfig
from model.depth_config import DepthConfig
from model.errors import ModelError
from model.moe_config import SigmaMoEConfig
from model.moeut import MoEUT
from model.official import keep_official_float32

# The official constructor's keyword arguments that have a default, and which.
_DEFAULTS: dict[str, Any] = {
    "d_head": None,
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
# What the feed-forward slot may be beyond them: the official library's own form.
_OFFICIAL_ROUTING = {"score": "sigmoid", "renormalise": False, "router_hidden": None, "balance": EntropyBalance()}
_REQUIRED = ("n_tokens", "d_model", "n_layers", "n_heads", "ff_n_experts", "att_n_experts")

_OUTER = {
    "embedding.weight": "embedding.weight",
    "head.weight": "lm_head.weight",
    "head.bias": "lm_head.bias",
    "final_norm.weight": "out_norm.weight",
    "final_norm.bias": "out_norm.bias",
}
_LAYER = {
    "attention_norm.weight": "ln1.weight",
    "attention_norm.bias": "ln1.bias",
    "feed_forward_norm.weight": "ln2.weight",
    "feed_forward_norm.bias": "ln2.bias",
    "attention.query.weight": "attention.q.weight",
    "attention.key.weight": "attention.k.weight",
    "attention.value.weight": "attention.v",
    "attention.output.weight": "attention.o",
    "attention.value_router.weight": "attention.sel_v",
    "attention.output_router.weight": "attention.sel_o",
    "attention.gate.weight": "attention.sel_o",
    "feed_forward.router.weight": "ffn.expert_sel",
    "feed_forward.up.weight": "ffn.keys",
    "feed_forward.down.weight": "ffn.values",
}


def load_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> MoEUT:
    """A model with the weights of the official library's.

    A call on tokens [B, T] gives `logits` and `balance_loss`, as the official `outputs` and `reg_loss`. One difference is
    left: with `dropout` above 0 the feed-forward branch is dropped too, where the official library drops attention only.

    Args:
        config: keyword arguments of the official constructor.
        state_dict: the official module's state dict, tensors of one float type.

    Raises:
        ModelError: an argument or a tensor is unknown, missing or of another shape.
    """
    model = MoEUT(from_official_config(config))
    keep_official_float32(model)
    names = official_names(model)
    _check_tensors({official: model.get_parameter(name) for name, official in names.items()}, state_dict)
    model.to(dtype=state_dict["embedding.weight"].dtype, device=state_dict["embedding.weight"].device)
    with torch.no_grad():
        for name, official in names.items():
            model.get_parameter(name).copy_(state_dict[official])
    return model


def to_official(model: MoEUT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The official constructor's keyword arguments and state dict of `model`, copies in its own type.

    Raises:
        ModelError: the official library has no such model, or a part of the experts is on other ranks.
    """
    config = to_official_config(model.config)
    names = official_names(model)
    return config, {official: model.get_parameter(name).detach().clone() for name, official in names.items()}


def official_gradients(model: MoEUT) -> dict[str, Tensor]:
    """Copies of the gradients under the official names.

    Raises:
        ModelError: a parameter has no gradient yet, or a part of the experts is on other ranks.
    """
    gradients = {}
    for name, official in official_names(model).items():
        gradient = model.get_parameter(name).grad
        if gradient is None:
            raise ModelError(f"{name} has no gradient; call backward on a loss first")
        gradients[official] = gradient.detach().clone()
    return gradients


def official_names(model: MoEUT) -> dict[str, str]:
    """Official name of every parameter of `model`."""
    if model.partitioned_parameters():
        raise ModelError("this rank holds only a part of the experts; convert a model built without an exchange")
    return {name: _official_name(name) for name, _ in model.named_parameters()}


def from_official_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that the official constructor would build from these keyword arguments.

    Raises:
        ModelError: an argument is unknown, missing or out of range.
    """
    known = [*_REQUIRED, *_DEFAULTS]
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ModelError(f"official config: unknown argument '{key}'" + (f"; did you mean {near[0]}?" if near else "; remove it"))
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise ModelError(f"official config: {', '.join(missing)} must be given")
    c = {**_DEFAULTS, **config}
    try:
        return ModelConfig(
            vocab_size=c["n_tokens"],
            d_model=c["d_model"],
            depth=DepthConfig(group=c["group_size"], repeats=c["n_layers"] // max(c["group_size"], 1)),
            attention=SwitchHeadConfig(
                n_heads=c["n_heads"],
                d_head=c["d_head"] or c["d_model"] // c["n_heads"],
                n_experts=c["att_n_experts"],
                top_k=c["att_k"],
                expert_dropout=c["att_expert_dropout"],
                balance_weight=c["att_entropy_reg"],
            ),
            feed_forward=SigmaMoEConfig(
                n_experts=c["ff_n_experts"],
                d_expert=c["ff_expert_size"],
                top_k=c["ff_k"],
                expert_dropout=c["ff_expert_dropout"],
                balance_weight=c["entropy_reg"],
            ),
            dropout=c["dropout"],
        )
    except ValidationError as fault:
        raise ModelError("official config: " + "; ".join(_explain(error) for error in fault.errors())) from None


def to_official_config(config: ModelConfig) -> dict[str, Any]:
    """The official constructor's keyword arguments for `config`.

    Raises:
        ModelError: the official library has no such model; the message names the field.
    """
    attention, feed_forward, depth = config.attention, config.feed_forward, config.depth
    if not isinstance(attention, SwitchHeadConfig):
        raise ModelError(f"attention.kind is '{attention.kind}'; the official library has switchhead only")
    if not isinstance(feed_forward, SigmaMoEConfig):
        raise ModelError(f"feed_forward.kind is '{feed_forward.kind}'; the official library has sigma_moe only")
    for name, value in _OFFICIAL_ROUTING.items():
        if getattr(feed_forward, name) != value:
            raise ModelError(f"feed_forward.{name} is {getattr(feed_forward, name)!r}; the official library has {value!r} only")
    if config.feed_forward_at:
        raise ModelError(f"feed_forward_at names layers {sorted(config.feed_forward_at)}; the official library's are alike: leave it out")
    if config.halting.kind != "none":
        raise ModelError(f"halting.kind is '{config.halting.kind}'; the official library has none only")
    if config.residual.kind != "single":
        raise ModelError(f"residual.kind is '{config.residual.kind}'; the official library has single only")
    if config.norm != "peri":
        raise ModelError(f"norm is '{config.norm}'; the official library has peri only")
    if attention.n_experts == 1 and attention.single_expert != "output_gate":
        raise ModelError(f"attention.single_expert is '{attention.single_expert}'; the official library has output_gate only")
    if (attention.rotary.fraction, attention.rotary.base) != (0.5, 10000.0):
        raise ModelError(f"attention.rotary is {attention.rotary}; the official library has fraction 0.5 and base 10000")
    for field in ("sample", "per_visit", "residual_scale", "backprop_repeats"):
        if getattr(depth, field) != DepthConfig.model_fields[field].default:
            raise ModelError(f"depth.{field} is {getattr(depth, field)}; the official library visits its layers alike: leave it out")
    if depth.schedule() != list(range(depth.n_layers)) * (depth.n_visits // depth.n_layers):
        raise ModelError(f"depth is {depth}; the official library repeats one group in cycle order")
    return {
        "n_tokens": config.vocab_size,
        "d_model": config.d_model,
        "n_layers": depth.n_visits,
        "n_heads": attention.n_heads,
        "ff_n_experts": feed_forward.n_experts,
        "att_n_experts": attention.n_experts,
        "d_head": attention.d_head,
        "group_size": depth.n_layers,
        "ff_k": feed_forward.top_k,
        "att_k": attention.top_k,
        "ff_expert_dropout": feed_forward.expert_dropout,
        "att_expert_dropout": attention.expert_dropout,
        "ff_expert_size": feed_forward.d_expert,
        "dropout": config.dropout,
        "entropy_reg": feed_forward.balance_weight,
        "att_entropy_reg": attention.balance_weight,
    }


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    return (where + ": " if where else "") + error["msg"].removeprefix("Value error, ")


def _official_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, layer, rest = name.split(".", 2)
    return f"transformer.layers.{layer}.{_LAYER[rest]}"


def _check_tensors(expected: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    missing, surplus = sorted(expected.keys() - state_dict.keys()), sorted(state_dict.keys() - expected.keys())
    if missing:
        raise ModelError(f"state dict: {len(missing)} tensors are missing, first '{missing[0]}'; does the config belong to it?")
    if surplus:
        raise ModelError(f"state dict: {len(surplus)} unknown tensors, first '{surplus[0]}'; does the config belong to it?")
    for name, parameter in expected.items():
        given = state_dict[name]
        if given.shape != parameter.shape:
            raise ModelError(f"state dict: '{name}' is {list(given.shape)}, the config asks for {list(parameter.shape)}")
        if not given.is_floating_point():
            raise ModelError(f"state dict: '{name}' is {given.dtype}, not a float type")
