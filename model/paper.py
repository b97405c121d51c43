"""The models of the MoEUT paper (arXiv 2405.16039 table 3 and its released sweeps), by their published names.

`PAPER`: MoEUT. `DENSE_PEERS`: the parameter-matched dense transformers. `SIGMA_MOE`: the non-shared baseline, one
attention expert gated at value and output. `GROUPS`: MoEUT 244M with other group sizes at equal parameters.
"""

from __future__ import annotations

from model.attention_config import DenseAttentionConfig, SwitchHeadConfig
from model.config import ModelConfig
from model.dense_config import DenseFeedForwardConfig
from model.depth_config import DepthConfig
from model.moe_config import SigmaMoEConfig

_VOCABULARY = 8000


def _moeut(layers: int, group: int, d: int, heads: int, n_a: int, d_head: int, n_e: int, k: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=_VOCABULARY,
        d_model=d,
        depth=DepthConfig(group=group, repeats=layers // group),
        attention=SwitchHeadConfig(n_heads=heads, d_head=d_head, n_experts=n_a, top_k=2),
        feed_forward=SigmaMoEConfig(n_experts=n_e, top_k=k),
    )


def _dense(layers: int, d: int, d_ff: int, heads: int, d_head: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=_VOCABULARY,
        d_model=d,
        depth=DepthConfig(group=layers, repeats=1),
        attention=DenseAttentionConfig(n_heads=heads, d_head=d_head),
        feed_forward=DenseFeedForwardConfig(d_ff=d_ff),
        norm="pre",
    )


def _sigma_moe(layers: int, d: int, heads: int, d_head: int, n_e: int, k: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=_VOCABULARY,
        d_model=d,
        depth=DepthConfig(group=layers, repeats=1),
        attention=SwitchHeadConfig(n_heads=heads, d_head=d_head, n_experts=1, top_k=1, single_expert="gated_expert"),
        feed_forward=SigmaMoEConfig(n_experts=n_e, top_k=k),
    )


PAPER: dict[str, ModelConfig] = {
    "44M": _moeut(16, 2, 412, 4, 8, 82, 155, 12),
    "126M": _moeut(18, 2, 768, 4, 10, 96, 254, 12),
    "244M": _moeut(18, 2, 1024, 4, 10, 128, 387, 16),
    "319M": _moeut(24, 3, 1024, 4, 10, 128, 338, 16),
    "728M": _moeut(36, 4, 1280, 5, 13, 128, 467, 20),
    "1040M": _moeut(36, 4, 1536, 6, 12, 128, 565, 24),
}

DENSE_PEERS: dict[str, ModelConfig] = {
    "44M": _dense(16, 412, 2053, 10, 41),
    "126M": _dense(16, 768, 3072, 16, 48),
    "244M": _dense(18, 1024, 4110, 16, 64),
    "319M": _dense(24, 1024, 4110, 16, 64),
    "728M": _dense(36, 1280, 5120, 20, 64),
    "1040M": _dense(36, 1536, 6144, 24, 64),
}

SIGMA_MOE: dict[str, ModelConfig] = {
    "44M": _sigma_moe(16, 412, 4, 82, 17, 12),
    "126M": _sigma_moe(18, 768, 4, 96, 26, 12),
    "244M": _sigma_moe(18, 1024, 4, 128, 40, 16),
    "319M": _sigma_moe(24, 1024, 4, 128, 40, 16),
    "728M": _sigma_moe(36, 1280, 5, 128, 50, 20),
}

_EXPERTS_BY_GROUP = {1: (20, 779), 2: (10, 387), 3: (6, 260), 6: (3, 128), 9: (2, 84)}
GROUPS: dict[int, ModelConfig] = {
    **{group: _moeut(18, group, 1024, 4, n_a, 128, n_e, 16) for group, (n_a, n_e) in _EXPERTS_BY_GROUP.items()},
    18: SIGMA_MOE["244M"],
}
