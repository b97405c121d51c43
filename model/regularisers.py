"""The regularisers of balance: what a visit sums over its tokens for one, and its value at the mean of those sums.

A statistic is linear in tokens, so its sums over visits, sequences, micro-batches and ranks are exact; only the value is not linear.

Shape suffixes: B sequences, T tokens, M routers side by side, E experts, K chosen, C entries of a statistic: E, and for some kinds more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.router import negative_entropy, softmax_sum
from model.balance_config import Balance, MIMBalance, Regularised, SwitchBalance


def statistic(balance: Balance, logits_BTME: Tensor, expert_BTMK: Tensor) -> Tensor:
    """What `value` needs, summed over tokens, [B, M, C]: softmaxes, then the shares of routes (switch) or sum_e p ln p (mim)."""
    sum_BME = softmax_sum(logits_BTME.transpose(1, 2))
    if isinstance(balance, SwitchBalance):
        return torch.cat([sum_BME, _route_shares(expert_BTMK, sum_BME)], dim=-1)
    if isinstance(balance, MIMBalance):
        conditional_BM = negative_entropy(logits_BTME.softmax(dim=-1)).sum(dim=1)
        return torch.cat([sum_BME, conditional_BM[..., None]], dim=-1)
    return sum_BME


def tokens_of(balance: Regularised, sum_BMC: Tensor) -> Tensor:
    """How many tokens a statistic was summed over, [B, M, 1]: each one's softmax adds one, times its share (`model.skipping`)."""
    others = {"entropy": 0, "mim": 1, "switch": sum_BMC.shape[-1] // 2}[balance.kind]
    return sum_BMC[..., : sum_BMC.shape[-1] - others].sum(dim=-1, keepdim=True)


def value(balance: Regularised, mean_MC: Tensor) -> Tensor:
    """The regulariser [M] at the mean statistic of a token; see the kinds in `model.balance_config`."""
    if isinstance(balance, SwitchBalance):
        p_ME, f_ME = mean_MC.chunk(2, dim=-1)
        return p_ME.shape[-1] * (f_ME * p_ME).sum(dim=-1)
    if isinstance(balance, MIMBalance):
        marginal_M = negative_entropy(mean_MC[..., :-1])
        return (marginal_M if balance.mim == "paper" else -marginal_M) - mean_MC[..., -1]
    return negative_entropy(mean_MC)


def _route_shares(expert_BTMK: Tensor, like_BME: Tensor) -> Tensor:
    """Of every token's K routes the share that each expert has, summed over tokens; choices have no gradient."""
    expert_BMR = expert_BTMK.transpose(1, 2).flatten(2)
    counts_BME = torch.zeros_like(like_BME).scatter_add_(2, expert_BMR, torch.ones_like(expert_BMR, dtype=like_BME.dtype))
    return counts_BME / expert_BTMK.shape[3]
