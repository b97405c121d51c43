"""Small models and the measure of difference that the model tests share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.moeut import ModelOutput, MoEUT

SWITCHHEAD = {"kind": "switchhead", "n_heads": 2, "d_head": 13, "n_experts": 3}
MOMHA = {"kind": "momha", "n_heads": 2, "d_head": 14, "n_experts": 5, "top_k": 3}
SIGMA_MOE = {"kind": "sigma_moe", "n_experts": 7, "d_expert": 16, "top_k": 3}

DENSE_ENDS: dict[str, Any] = {
    "norm": "pre",
    "depth": {"prelude": 1, "group": 2, "repeats": 2, "coda": 1},
    "feed_forward_at": {0: {"kind": "dense", "d_ff": 50}, 3: {"kind": "topk", "d_ff": 50, "top_k": 7}},
}
"""A dense prelude and another coda around the routed group."""

KINDS: dict[str, dict[str, Any]] = {
    "peri": {},
    "pre": {"norm": "pre"},
    "post": {"norm": "post"},
    "output_gate": {"attention": {**SWITCHHEAD, "n_experts": 1}},
    "gated_expert": {"attention": {**SWITCHHEAD, "n_experts": 1, "top_k": 1, "single_expert": "gated_expert"}},
    "dense": {"norm": "pre", "attention": {"kind": "dense", "n_heads": 2, "d_head": 18}, "feed_forward": {"kind": "dense", "d_ff": 50}},
    "altup": {"residual": {"kind": "altup", "streams": 2}},
    "recycled_altup": {"residual": {"kind": "recycled_altup", "streams": 3, "compute_input": "predicted"}},
    "topk": {"norm": "pre", "feed_forward": {"kind": "topk", "d_ff": 50, "top_k": 7}},
    "pkm": {"norm": "pre", "feed_forward": {"kind": "pkm", "n_keys": 6, "heads": 2, "top_k": 4, "d_key": 10, "query_norm": "layer"}},
    "pkm_halves": {"norm": "pre", "feed_forward": {"kind": "pkm_halves", "n_keys": 6, "heads": 3, "top_k": 4}},
    "pkm_dense": {"norm": "pre", "feed_forward": {"kind": "pkm_halves", "n_keys": 6, "heads": 3, "top_k": 6}},
    "peer": {"feed_forward": {"kind": "peer", "n_keys": 6, "heads": 3, "top_k": 5, "d_key": 10}},
    "peer_glu": {"feed_forward": {"kind": "peer", "n_keys": 6, "heads": 3, "top_k": 5, "d_key": 10, "glu": True}},
    "peer_shared_keys": {
        "feed_forward": {"kind": "peer", "n_keys": 6, "heads": 2, "top_k": 5, "d_key": 8, "keys_per_head": False, "query_norm": "none"}
    },
    "pkm_batch": {"norm": "pre", "feed_forward": {"kind": "pkm", "n_keys": 6, "heads": 2, "top_k": 4, "d_key": 10, "query_norm": "batch"}},
    "peer_batch": {"feed_forward": {"kind": "peer", "n_keys": 6, "heads": 3, "top_k": 5, "d_key": 10, "query_norm": "batch"}},
    "one_peer": {
        "norm": "pre",
        "depth": {"group": 3, "repeats": 2},
        "feed_forward": {"kind": "dense", "d_ff": 50},
        "feed_forward_at": {1: {"kind": "peer", "n_keys": 6, "heads": 3, "top_k": 5, "d_key": 10}},
    },
    "switch": {"feed_forward": {"kind": "switch", "n_experts": 7, "d_expert": 16, "top_k": 2}},
    "s_base": {"feed_forward": {"kind": "s_base", "n_experts": 7, "d_expert": 16, "top_k": 2, "choice_scope": "sequence"}},
    "softmax_renormalised": {
        "feed_forward": {**SIGMA_MOE, "score": "softmax", "renormalise": True, "balance": {"kind": "entropy", "scope": "step"}}
    },
    "two_layer_router": {"feed_forward": {**SIGMA_MOE, "router_hidden": 9, "balance": {"kind": "mim"}}},
    "bias": {"feed_forward": {**SIGMA_MOE, "balance": {"kind": "bias"}}},
    "momha": {"norm": "post", "attention": MOMHA},
    "stick_breaking": {"halting": {"kind": "stick_breaking"}},
    "act": {"halting": {"kind": "act", "epsilon": 0.27}},
    "prelude_and_coda": {"depth": {"prelude": 1, "group": 2, "repeats": 2, "coda": 1, "order": "loop"}},
    "dense_ends": DENSE_ENDS,
    "dense_ends_sampled": {
        **DENSE_ENDS,
        "feed_forward": {**SIGMA_MOE, "score": "softmax", "renormalise": True, "balance": {"kind": "entropy", "scope": "step"}},
        "depth": {**DENSE_ENDS["depth"], "sample": {"kind": "uniform", "max": 3}, "per_visit": ["router", "norm"]},
        "feed_forward_at": {**DENSE_ENDS["feed_forward_at"], 2: {"kind": "peer", "n_keys": 6, "heads": 3, "top_k": 5, "d_key": 10}},
    },
    "per_visit": {
        "depth": {"group": 2, "repeats": 2, "coda": 1, "per_visit": ["router", "norm", "embedding", "residual_scale"]},
        "residual": {"kind": "altup", "streams": 2},
    },
    "sampled": {
        "norm": "pre",
        "depth": {"prelude": 1, "repeats": 2, "sample": {"kind": "uniform", "max": 3}, "per_visit": ["router"], "backprop_repeats": 1},
    },
}


def tiny_config(**changes: Any) -> ModelConfig:
    fields = {"vocab_size": 61, "d_model": 36, "depth": {"group": 2, "repeats": 3}, "attention": SWITCHHEAD, "feed_forward": SIGMA_MOE}
    return ModelConfig.model_validate({**fields, **changes})


def tiny_model(dtype: torch.dtype = torch.float64, seed: int = 1, recompute: Any = "none", **changes: Any) -> MoEUT:
    """A drawn model whose norms, stream coefficients and depth switches were moved off their starts, so that a missing one shows."""
    model = MoEUT(tiny_config(**changes), recompute=recompute).init_parameters(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or name.startswith("streams.") or ".depth." in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def tiny_tokens(n_sequences: int = 2, n_tokens: int = 11, seed: int = 0) -> Tensor:
    return torch.randint(61, (n_sequences, n_tokens), generator=torch.Generator().manual_seed(seed))


def loss_of(output: ModelOutput, targets_BT: Tensor) -> Tensor:
    auxiliary = output.balance_loss + output.ponder_B.sum() / max(len(targets_BT), 1)
    return F.cross_entropy(output.logits.flatten(0, 1), targets_BT.flatten()) + auxiliary


def gradients(model: MoEUT, tokens_BT: Tensor, **arguments: Any) -> dict[str, Tensor]:
    """Gradients of cross-entropy (targets: the tokens shifted round) and regulariser."""
    model.zero_grad(set_to_none=True)
    loss_of(model(tokens_BT, **arguments), tokens_BT.roll(-1, 1)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


def worst(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference and the tensor where it is."""
    assert actual.keys() == expected.keys()
    return max((relative(actual[name], expected[name]), name) for name in expected)
