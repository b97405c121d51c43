"""What a router's logits mean: which experts, with what weight, and how evenly over a sequence.

Experts are scored by a sigmoid and do not compete (sigma-MoE, arXiv 2310.10837): the K best are taken and their sigmoids
are used as they are, not renormalised. The softmax of the same logits serves only the entropy regulariser
(arXiv 2405.16039, eq. 4). Everything here is computed in float32, or in the input's type if that is wider.

Shape suffixes: B sequences, T tokens, M routers side by side, E experts, K experts chosen a token, C entries of a
statistic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.rows import runs_triton


class Routed(NamedTuple):
    """What was chosen: experts int64 [B, T, M, K], their weights, and routes an expert int64 [M, E].

    `statistic` is what a regulariser must know, summed over tokens [B, M, C]; `route` gives the softmax, C = E.
    """

    expert: Tensor
    weight: Tensor
    statistic: Tensor
    load: Tensor


def route(
    logits_BTME: Tensor, top_k: int, chosen: Tensor | None = None, dropout: float = 0.0, generator: torch.Generator | None = None
) -> Routed:
    """`select`, `weigh`, `softmax_sum` and `count` of the same logits; on an accelerator in one pass over them.

    Args:
        chosen: take these experts, int64 [B, T, M, K], and select none.
    """
    if runs_triton(logits_BTME):
        from kernels.router_triton import route_triton

        scores = _masked(_wide(logits_BTME.detach()), dropout, generator) if chosen is None and dropout > 0.0 else None
        return route_triton(_wide(logits_BTME), top_k, scores, chosen)
    expert = select(logits_BTME, top_k, dropout, generator) if chosen is None else chosen
    return Routed(expert, weigh(logits_BTME, expert), softmax_sum(logits_BTME.transpose(1, 2)), count(expert, logits_BTME.shape[3]))


def select(logits_TE: Tensor, top_k: int, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """The `top_k` experts of every token with the highest scores: int64 [..., K], best first.

    The sigmoid is monotone, so logits are compared: they keep apart scores that a saturated sigmoid would tie.

    Args:
        logits_TE: router logits [..., E].
        top_k: experts a token, at most E.
        dropout: probability with which a score is masked out before the choice (expert dropout; no rescaling).
        generator: source of the dropout mask.
    """
    return _masked(_wide(logits_TE.detach()), dropout, generator).topk(top_k, dim=-1).indices


def weigh(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """Weights of the chosen experts, sigmoid(logit), [..., K]; the only way a gradient reaches the router from the output."""
    return torch.sigmoid(_wide(logits_TE.gather(-1, expert_TK)))


def softmax_sum(logits_BTE: Tensor) -> Tensor:
    """Sum over tokens of the softmax over experts, [B, E]: what a visit adds to the regulariser's running statistic."""
    return torch.softmax(_wide(logits_BTE), dim=-1).sum(dim=-2)


def count(expert_BTMK: Tensor, n_experts: int) -> Tensor:
    """How many routes each expert of each router has, int64 [M, E]."""
    routers = expert_BTMK.shape[2]
    flat = (expert_BTMK + torch.arange(0, routers * n_experts, n_experts, device=expert_BTMK.device)[:, None]).flatten()
    return flat.new_zeros(routers * n_experts).scatter_add_(0, flat, torch.ones_like(flat)).view(routers, n_experts)


def negative_entropy(p_BE: Tensor) -> Tensor:
    """sum_e p ln p of each row [B] (eq. 4 before its weight): -ln E when even, 0 when one expert has everything.

    An expert with p = 0 adds nothing and gets a large finite gradient, where p ln p itself has an infinite one.
    """
    p_BE = _wide(p_BE)
    return (p_BE * p_BE.clamp_min(torch.finfo(p_BE.dtype).tiny).log()).sum(dim=-1)


def _masked(score_TE: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor:
    if dropout == 0.0:
        return score_TE
    draw_TE = torch.rand(score_TE.shape, generator=generator, device=score_TE.device)
    return score_TE.masked_fill(draw_TE < dropout, -torch.inf)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
