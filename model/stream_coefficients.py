"""How much of every stream goes into a prediction, and how far a prediction is corrected: learned numbers, or a router's.

Both hold the difference from the identity: zero coefficients predict every stream as it was and correct all by the whole of
what the active one's prediction missed.

Shape suffixes: B sequences, T tokens, D model width, K streams, S sets of coefficients (visits, or distinct layers).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.initialise import Constant, Normal, Rules

CLIP = 120.0
"""Largest weight of a routed coefficient (Gemma 3n's `altup_coef_clip`)."""


class StaticCoefficients(nn.Module):
    """One number for all tokens: P - I in `predict` [S, K, K] and g - 1 in `correct` [S, K] (arXiv 2301.13310).

    Starting at zero they make the model of a single stream; weight decay draws it there and not to nothing, and bfloat16 is
    finest there.
    """

    def __init__(self, n_sets: int, n_streams: int) -> None:
        super().__init__()
        self.predict = nn.Parameter(torch.empty(n_sets, n_streams, n_streams))
        self.correct = nn.Parameter(torch.empty(n_sets, n_streams))

    def mix(self, number: int, x_KBTD: Tensor, active: int) -> Tensor:
        """What set `number` adds to the streams to predict them, [K, B, T, D]."""
        return torch.einsum("ik,kbtd->ibtd", self.predict[number].to(x_KBTD.dtype), x_KBTD)

    def gain(self, number: int, y_BTD: Tensor) -> Tensor:
        """g - 1 of every stream, to multiply [K, B, T, D]."""
        return self.correct[number].to(y_BTD.dtype).view(-1, 1, 1, 1)

    def init_rules(self, scale: float) -> Rules:
        return {"predict": Constant(0.0), "correct": Constant(0.0)}


class RoutedCoefficients(nn.Module):
    """Of each token, by a router m(x) = tanh(W RMSNorm(x) / D) in K numbers (Gemma 3n, google-deepmind/gemma `_modules.py`).

    Predictions follow m of the active stream before the layer, corrections m of the layer's result. Weights beyond `CLIP`
    count as that. They start at zero, where Gemma draws them with deviations of 1e-4 (`predict`) and 1e-2 (`correct`).
    """

    def __init__(self, n_sets: int, n_streams: int, d_model: int) -> None:
        super().__init__()
        self.n_streams, self.d_model, self.eps = n_streams, d_model, 1e-6
        self.norm = nn.Parameter(torch.empty(n_sets, d_model))
        self.router = nn.Parameter(torch.empty(n_sets, n_streams, d_model))
        self.predict = nn.Parameter(torch.empty(n_sets, n_streams**2, n_streams))
        self.correct = nn.Parameter(torch.empty(n_sets, n_streams, n_streams))

    def mix(self, number: int, x_KBTD: Tensor, active: int) -> Tensor:
        """What set `number` adds to the streams to predict them, [K, B, T, D]."""
        weights = self._weights(self.predict, number, x_KBTD[active])
        return torch.einsum("btik,kbtd->ibtd", weights.unflatten(-1, (self.n_streams, self.n_streams)), x_KBTD)

    def gain(self, number: int, y_BTD: Tensor) -> Tensor:
        """g - 1 of every stream, to multiply [K, B, T, D]."""
        return self._weights(self.correct, number, y_BTD).movedim(-1, 0).unsqueeze(-1)

    def _weights(self, matrices: Tensor, number: int, x_BTD: Tensor) -> Tensor:
        norm_D, router_KD, matrix = (each[number].to(x_BTD.dtype) for each in (self.norm, self.router, matrices))
        n_BTD = F.rms_norm(x_BTD, (self.d_model,), norm_D, self.eps) / self.d_model
        return F.linear(F.linear(n_BTD, router_KD).tanh(), matrix.clamp(-CLIP, CLIP))

    def init_rules(self, scale: float) -> Rules:
        zero = Constant(0.0)
        return {"norm": Constant(1.0), "router": Normal(self.d_model**-0.5), "predict": zero, "correct": zero}
