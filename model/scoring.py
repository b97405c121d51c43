"""What a router's logits mean beyond the form of `kernels.router`: other weights, and other choices.

Shape suffixes: E experts, K experts chosen, N tokens among which a choice is evened out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.moe_config import RoutedConfig


def scores(logits_E: Tensor, config: RoutedConfig) -> Tensor:
    """The score of every expert [..., E]: the sigmoid of its logit, or the softmax over all."""
    return logits_E.sigmoid() if config.score == "sigmoid" else logits_E.softmax(dim=-1)


def weights(logits_E: Tensor, expert_K: Tensor, config: RoutedConfig) -> Tensor:
    """Weights of the chosen experts [..., K]; differentiable in the logits.

    The softmax over the chosen and the renormalised softmax over all are one function; the first never divides by an underflow.
    """
    if config.score == "softmax" and (config.softmax_over == "chosen" or config.renormalise):
        return logits_E.gather(-1, expert_K).softmax(dim=-1)
    weight_K = scores(logits_E, config).gather(-1, expert_K)
    if not config.renormalise:
        return weight_K
    return weight_K / weight_K.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weight_K.dtype).tiny)


def sinkhorn(logits_NE: Tensor, iterations: int) -> Tensor:
    """Logarithms of scores [..., N, E] that are even over tokens and experts at once (arXiv 2202.01169 section 3.2).

    An iteration makes every expert's sum over tokens one, then every token's sum over experts.
    """
    for _ in range(iterations):
        logits_NE = logits_NE.log_softmax(dim=-2).log_softmax(dim=-1)
    return logits_NE
