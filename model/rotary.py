"""Rotary positions on the first channels of every head, and who may attend to whom.

Shape suffixes: B sequences, T queries, S keys, H heads, d head width, R rotated channels, r = R/2 frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.attention_config import RotaryConfig


@dataclass
class Positions:
    """What attention must know of a batch's order; made once a forward and shared by all visits.

    `cos`, `sin`: [T, r], or [B, 1, T, r] where positions restart inside a sequence. `mask`: bool, true where a query may
    attend, broadcast to [B, H, T, S]; None where `causal` says it all.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    causal: bool


def rotated_channels(d_head: int, fraction: float) -> int:
    """How many channels of a head are rotated: fraction * d_head rounded down to an even number (d_head 82 gives 40)."""
    channels = int(fraction * d_head)
    return channels - channels % 2


def positions(tokens_BT: Tensor, past: int, segments_BT: Tensor | None, d_head: int, rotary: RotaryConfig, dtype: torch.dtype) -> Positions:
    """Positions of `tokens_BT`, which follow `past` cached ones, or restart where the number in `segments_BT` changes.

    angle(t, i) = t * base^(-2i/R) (arXiv 2104.09864, rotate-half pairing), computed in `dtype`.
    """
    n_tokens = tokens_BT.shape[1]
    here_T = torch.arange(past, past + n_tokens, device=tokens_BT.device)
    mask, causal = None, True
    if segments_BT is not None:
        place, mask, causal = _restart(segments_BT).unsqueeze(1), _same_segment(segments_BT), False
    else:
        place = here_T
        if past:
            before_S = torch.arange(past + n_tokens, device=tokens_BT.device)
            mask, causal = before_S <= here_T[:, None], False
    channels = rotated_channels(d_head, rotary.fraction)
    even_r = torch.arange(0, channels, 2, device=tokens_BT.device, dtype=dtype)
    angle = place[..., None].to(dtype) * (1.0 / rotary.base ** (even_r / max(channels, 1)))
    return Positions(angle.cos(), angle.sin(), mask, causal)


def rotate(x_BHTd: Tensor, where: Positions) -> Tensor:
    """Turn channel pairs (i, i + R/2) of the first R channels by their angles; the others pass."""
    half = where.cos.shape[-1]
    if half == 0:
        return x_BHTd
    first, second, rest = x_BHTd.split([half, half, x_BHTd.shape[-1] - 2 * half], dim=-1)
    turned = torch.cat([first * where.cos - second * where.sin, second * where.cos + first * where.sin], dim=-1)
    return torch.cat([turned.to(x_BHTd.dtype), rest], dim=-1)


def _restart(segments_BT: Tensor) -> Tensor:
    """Distance of every token from the first of its segment."""
    here_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return here_T - torch.where(begins_BT, here_T, 0).cummax(dim=1).values


def _same_segment(segments_BT: Tensor) -> Tensor:
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same_BTS.tril().unsqueeze(1)
