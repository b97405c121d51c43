"""Residual streams: what a token carries from visit to visit, what of it a layer reads, and how the layer's result comes back.

`single` is the ordinary residual stream. AltUp (arXiv 2301.13310) keeps K streams of the model's width; a visit computes one
of them by the layer and the others by learned coefficients (K^2 + K numbers), at the cost of (K^2 + 2K) multiply-adds a channel.

Shape suffixes: B sequences, T tokens, D model width, K streams; streams side by side are K*D wide.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

from model.depth_config import DepthConfig
from model.stream_coefficients import RoutedCoefficients, StaticCoefficients
from model.stream_config import AltUpConfig, SingleStreamConfig
from model.visit import Visit


class ResidualStreams(Protocol):
    """`enter` once, `read` and `write` around every visit's layer, `leave` once.

    Attributes:
        table_copies: how many model widths a row of the embedding has.
        head_copies: the same of a row of the output head.
    """

    table_copies: int
    head_copies: int

    def enter(self, x: Tensor) -> Tensor:
        """The streams, from embedding rows [B, T, table_copies * D]."""
        ...

    def read(self, visit: Visit, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer of `visit` is given, [B, T, D], and what `write` is to be given."""
        ...

    def write(self, visit: Visit, x: Tensor, y_BTD: Tensor) -> Tensor:
        """The streams after the visit, from what `read` gave and the layer's result, its own residuals included."""
        ...

    def leave(self, x: Tensor, norm: nn.Module) -> Tensor:
        """What the head reads, [B, T, head_copies * D], normalised by the model's final `norm` over D."""
        ...


class SingleStream(nn.Module):
    """One stream, [B, T, D]: a layer reads it and its result is the stream."""

    table_copies = head_copies = 1

    def enter(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def read(self, visit: Visit, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return x_BTD, x_BTD

    def write(self, visit: Visit, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        return y_BTD

    def leave(self, x_BTD: Tensor, norm: nn.Module) -> Tensor:
        return norm(x_BTD)


class AltUp(nn.Module):
    """K streams [K, B, T, D], one of them computed a visit, the others predicted and corrected (arXiv 2301.13310).

    With active stream j, coefficients p and g, and the layer L:
        predict  z_i = sum_k p_ik x_k;   compute  y = L(x_j), or L(z_j);   correct  x_i = z_i + g_i (y - z_j).

    `altup` has embedding and head of width K*D. `recycled_altup` has those of one stream: rows are repeated, and
    streams averaged where they leave. The paper sums them; the final norm takes that factor K out again, and the mean
    starts as one stream does, the norm's eps included.
    """

    def __init__(self, config: AltUpConfig, depth: DepthConfig, d_model: int) -> None:
        super().__init__()
        self.n_streams, self.compute_input, self.block = config.streams, config.compute_input, config.block
        self.table_copies = self.head_copies = 1 if config.kind == "recycled_altup" else config.streams
        self.by_layer = config.coefficients == "layer"
        n_sets = depth.n_layers if self.by_layer else depth.n_numbers()
        self.coefficients: StaticCoefficients | RoutedCoefficients = (
            RoutedCoefficients(n_sets, config.streams, d_model) if config.routed else StaticCoefficients(n_sets, config.streams)
        )

    def enter(self, x: Tensor) -> Tensor:
        repeated = self.table_copies == 1
        x_KBTD = x.expand(self.n_streams, *x.shape) if repeated else x.unflatten(-1, (self.n_streams, -1)).movedim(-2, 0)
        return x_KBTD.contiguous()  # or every layer would copy the stream it reads

    def read(self, visit: Visit, x_KBTD: Tensor) -> tuple[Tensor, Tensor]:
        active = active_stream(visit, self.n_streams, self.block)
        predicted_KBTD = x_KBTD + self.coefficients.mix(self._set(visit), x_KBTD, active)
        source_KBTD = predicted_KBTD if self.compute_input == "predicted" else x_KBTD
        return source_KBTD[active], predicted_KBTD

    def write(self, visit: Visit, predicted_KBTD: Tensor, y_BTD: Tensor) -> Tensor:
        gain = self.coefficients.gain(self._set(visit), y_BTD)
        expected_BTD = predicted_KBTD[active_stream(visit, self.n_streams, self.block)]
        # Not z + g (y - z): in this order g = 1 gives an active stream, and all equal streams, the bits of y.
        return y_BTD + (predicted_KBTD - expected_BTD) + gain * (y_BTD - expected_BTD)

    def leave(self, x_KBTD: Tensor, norm: nn.Module) -> Tensor:
        if self.head_copies == 1:
            # The mean, in the form that leaves equal streams their bits for any K.
            return norm(x_KBTD[0] + (x_KBTD - x_KBTD[0]).mean(dim=0))
        return norm(x_KBTD).movedim(0, -2).flatten(-2)

    def _set(self, visit: Visit) -> int:
        return visit.layer if self.by_layer else visit.number


def active_stream(visit: Visit, n_streams: int, block: Literal["alternating", "by_visit", "same"]) -> int:
    """The stream that a visit computes.

    same: stream 0. by_visit: its number mod K, the paper's rule for distinct layers; where K divides the group of a cycle it ties
    every shared layer to one stream. alternating: (layer + times it was visited before) mod K, which is the paper's rule in
    a model without repeats, and takes a layer visited K times or more through all streams in either order.
    """
    if block == "same":
        return 0
    return (visit.number if block == "by_visit" else visit.layer + visit.repeat) % n_streams


def build_streams(residual: SingleStreamConfig | AltUpConfig, depth: DepthConfig, d_model: int) -> SingleStream | AltUp:
    """The streams that `model.residual` names."""
    return AltUp(residual, depth, d_model) if isinstance(residual, AltUpConfig) else SingleStream()
