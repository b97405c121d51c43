"""Continue token sequences, one token at a time, with an exact cache of keys and values.

Shape suffixes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.cache import KVCache
from model.errors import ModelError
from model.moeut import MoEUT

__all__ = ["KVCache", "generate", "sample"]


@torch.no_grad()
def generate(
    model: MoEUT,
    tokens_BT: Tensor,
    max_new: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    repeats: int | None = None,
) -> Tensor:
    """`tokens_BT` followed by `max_new` more tokens, int64 [B, T + max_new]; the model is used in evaluation mode.

    Args:
        model: with all its experts here, or every rank calling with its own tokens.
        tokens_BT: int64, at least one token a sequence, all of one length.
        max_new: tokens to add.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among so many likeliest tokens; None: all.
        generator: of the draws, on the tokens' device.
        repeats: how many times the model goes through its group of layers; None: as configured.

    Raises:
        ModelError: an argument is out of range.
    """
    _check(tokens_BT, max_new, temperature, top_k, model.config.vocab_size)
    was_training = model.training
    model.eval()
    try:
        cache, fresh_BT = KVCache(model.config.depth.n_numbers(repeats)), tokens_BT
        for _ in range(max_new):
            logits_BV = model(fresh_BT, cache=cache, repeats=repeats).logits[:, -1]
            fresh_BT = sample(logits_BV, temperature, top_k, generator)
            tokens_BT = torch.cat([tokens_BT, fresh_BT], dim=1)
    finally:
        model.train(was_training)
    return tokens_BT


def sample(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token a row, int64 [B, 1]."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1, keepdim=True)
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)) / temperature
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    return torch.multinomial(logits_BV.softmax(dim=-1), 1, generator=generator)


def _check(tokens_BT: Tensor, max_new: int, temperature: float, top_k: int | None, vocab_size: int) -> None:
    if tokens_BT.ndim != 2 or tokens_BT.shape[1] == 0:
        raise ModelError(f"tokens have shape {list(tokens_BT.shape)}; give [B, T] with at least one token to continue")
    if tokens_BT.numel() and not 0 <= int(tokens_BT.min()) <= int(tokens_BT.max()) < vocab_size:
        raise ModelError(f"tokens lie in {int(tokens_BT.min())}..{int(tokens_BT.max())}, the vocabulary in 0..{vocab_size - 1}")
    if max_new < 0:
        raise ModelError(f"max_new is {max_new}; give 0 or more")
    if not temperature >= 0:
        raise ModelError(f"temperature is {temperature}; give 0 (the likeliest token) or more")
    if top_k is not None and top_k < 1:
        raise ModelError(f"top_k is {top_k}; give 1 or more, or leave it out")
