"""The least time each form of the expert MLP can take, launch by launch: arithmetic, bytes of memory, bytes of the second-level cache.

Rows gathered expert by expert are counted as coming from memory each time; in windows, or a block of columns at a time, they come from
memory once and from the cache after that, and in return weights are read once a window and the hidden layer once a block. Between
programs and the cache everything counts that a program reads or writes: its tile of rows, and its expert's weights again for every
tile. Sorting routes by chunk of rows and expert would give the same windows, but leave half a tile empty for each expert in each
chunk; taking the tiles of one sort in another order does not. `atomic sums` is not built: what the fused form would take if its
programs added into float32 sums held in the cache, in no fixed order and so without equal bits.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import torch

from benchmarks.floors import BF16, FP32, INT64, Work
from kernels.tile_order import WINDOW_BYTES
from kernels.tiles import tile_rows
from model.config import ModelConfig
from model.moe_config import SigmaMoEConfig

BLOCK_OUT = 128  # columns of one program of gather_matmul, and of expert_outer_products unless by columns: then twice that


class Kind(NamedTuple):
    """What tells the forms apart, as `kernels.expert_mlp_triton.FORMS` names them."""

    fused: bool
    windowed: bool
    atomic: bool = False


KINDS = {
    "two-kernel": Kind(fused=False, windowed=False),
    "two-kernel windowed": Kind(fused=False, windowed=True),
    "fused": Kind(fused=True, windowed=False),
    "fused windowed": Kind(fused=True, windowed=True),
    "atomic sums": Kind(fused=True, windowed=True, atomic=True),
}


def form_floors(config: ModelConfig, tokens: int) -> dict[str, dict[str, Work]]:
    """form -> launch -> work, of one FFN in bf16; launches of the backward begin with `d `."""
    return {name: _Form(config, tokens, kind).launches() for name, kind in KINDS.items()}


class _Form:
    """What one form moves, in bytes: `wide` and `hidden` have a row a route, `rows` a row a token."""

    def __init__(self, config: ModelConfig, tokens: int, kind: Kind) -> None:
        feed_forward = config.feed_forward
        assert isinstance(feed_forward, SigmaMoEConfig)
        self.fused, self.windowed, self.atomic = kind
        width, narrow, routes = config.d_model, feed_forward.d_expert, tokens * feed_forward.top_k
        self.product, self.sum_flops = 2.0 * routes * width * narrow, float(routes * width)
        self.wide, self.hidden, self.rows, self.index = routes * width * BF16, routes * narrow * BF16, tokens * width * BF16, routes * INT64
        self.weights = feed_forward.n_experts * width * narrow * BF16
        tiles = routes / tile_rows(torch.bfloat16)
        self.tile_weights = tiles * width * narrow * BF16
        self.columns = ceil(width / BLOCK_OUT)
        windows = max(1, min(ceil(self.rows / WINDOW_BYTES), int(tiles / feed_forward.n_experts) + 1))
        self.gathered, self.windows = (self.rows, windows) if self.windowed and windows > 1 else (self.wide, 1)

    def launches(self) -> dict[str, Work]:
        """By name, in their order."""
        done = {"sort": Work(0.0, 3 * self.index)}
        if self.fused:
            done |= {"up and down": self._both(kept=1)}
        else:
            done |= {"up": self._gathering(kept=1), "down": self._spreading()}
        done |= self._sum("")
        if self.fused:
            done |= {"d hidden and x": self._both(kept=2)}
        else:
            done |= {"d hidden": self._gathering(kept=2), "d x": self._spreading()}
        return done | self._sum("d ") | {"d up": self._outer(), "d down": self._outer()}

    def _gathering(self, kept: int) -> Work:
        moved = self.gathered + self.windows * self.weights + kept * self.hidden + self.index
        return Work(self.product, moved, self.wide + self.tile_weights + kept * self.hidden)

    def _spreading(self) -> Work:
        moved = self.hidden + self.weights + self.wide + self.index
        return Work(self.product, moved, self.columns * self.hidden + self.tile_weights + self.wide)

    def _both(self, kept: int) -> Work:
        written, added = (2 * self.rows * FP32 / BF16, self.wide * FP32 / BF16) if self.atomic else (self.wide, self.wide)
        moved = self.gathered + 2 * self.windows * self.weights + kept * self.hidden + written + self.index
        return Work(2 * self.product, moved, self.wide + 2 * self.tile_weights + kept * self.hidden + added)

    def _sum(self, prefix: str) -> dict[str, Work]:
        if self.atomic:
            return {}
        return {f"{prefix}sum": Work(self.sum_flops, self.wide + self.rows, self.wide + self.rows)}

    def _outer(self) -> Work:
        blocks = ceil(self.columns / 2) if self.windowed else self.columns
        gathered, hidden_read = (self.rows, blocks) if self.windowed else (self.wide, 1)
        moved = gathered + hidden_read * self.hidden + self.weights + self.index
        return Work(self.product, moved, self.wide + blocks * self.hidden + self.weights)
