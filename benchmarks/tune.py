"""Other tiles for the FFN's matrix products: of one launch at a time, from what it has towards what is faster.

A search goes from the fastest tiles so far one step along every axis, until no neighbour is faster or its time is up.
Kernels are launched by the functions that launch them in training; only their constants are replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton

from benchmarks import kernel_operations
from benchmarks.timing import Form, measure
from cluster.markdown import table
from kernels import expert_outer_products, gather_matmul
from model.moe_config import SigmaMoEConfig
from model.paper import PAPER

PRODUCTS = {
    "up": gather_matmul._gather_matmul,
    "down": gather_matmul._gather_matmul,
    "d hidden": gather_matmul._gather_matmul,
    "d x": gather_matmul._gather_matmul,
    "d up": expert_outer_products._expert_outer_products,
    "d down": expert_outer_products._expert_outer_products,
}
ROUNDS, SHOWN = 5, 5


class Tiles(NamedTuple):
    """Routes at a time, columns of the width in and out, warps, stages of the pipeline."""

    rows: int
    width_in: int
    width_out: int
    warps: int
    stages: int


_WIDTHS = (16, 32, 64, 128, 256)
LADDERS: dict[str, tuple[int, ...]] = {
    "rows": (32, 64, 128, 256),
    "width_in": _WIDTHS,
    "width_out": _WIDTHS,
    "warps": (2, 4, 8, 16),
    "stages": (1, 2, 3, 4, 5),
}


def tune(size: str, tokens: int, dtype: torch.dtype, seconds: float) -> None:
    """Print, for each matrix product of `size`'s FFN, the fastest tiles found in `seconds` beside those it has."""
    config = PAPER[size]
    assert isinstance(config.feed_forward, SigmaMoEConfig)
    feed_forward = config.feed_forward

    @cache
    def forms(rows: int) -> dict[str, Form]:
        with mock.patch.object(kernel_operations, "tile_rows", lambda _: rows):
            return kernel_operations.layer_operations(config.d_model, feed_forward, tokens, dtype, "cuda")

    usual = kernel_operations.tile_rows(dtype)
    for name, kernel in PRODUCTS.items():
        by_route = kernel is gather_matmul._gather_matmul

        def seconds_of(tiles: Tiles, name: str = name, kernel: Any = kernel, by_route: bool = by_route) -> float:
            form = forms(tiles.rows if by_route else usual)[name]
            try:
                with launched_with(kernel, tiles):
                    return min(measure({name: form}, ROUNDS, "cuda")[name])
            except Exception:  # does not compile, or not enough shared memory: tiles that cannot be had
                return torch.inf

        start = tiles_of(kernel, forms(usual)[name])
        found = search(start, seconds_of, seconds)
        best = sorted(found, key=lambda tiles: found[tiles])[:SHOWN]
        rows = [[f"{size} {name}", *map(str, tiles), f"{1e6 * found[tiles]:.0f}", _mark(tiles, start)] for tiles in [start, *best]]
        header = [f"of {len(found)} tried", "rows", "in", "out", "warps", "stages", "us", ""]
        print("\n" + table(header, rows), flush=True)


def search(
    start: Tiles, seconds_of: Callable[[Tiles], float], seconds: float, clock: Callable[[], float] = time.monotonic
) -> dict[Tiles, float]:
    """Times of all tiles tried, infinite for those that cannot run; `start` is always among them."""
    end = clock() + seconds
    found = {start: seconds_of(start)}
    while True:
        best = min(found, key=lambda tiles: found[tiles])
        untried = [tiles for tiles in neighbours(best) if tiles not in found]
        if not untried:
            return found
        for tiles in untried:
            if clock() >= end:
                return found
            found[tiles] = seconds_of(tiles)


def neighbours(tiles: Tiles) -> Iterator[Tiles]:
    """One step up or down one ladder."""
    for name, ladder in LADDERS.items():
        for step in (-1, 1):
            number = ladder.index(getattr(tiles, name)) + step
            if 0 <= number < len(ladder):
                yield tiles._replace(**{name: ladder[number]})


@contextmanager
def launched_with(kernel: Any, tiles: Tiles) -> Iterator[None]:
    """Every launch of `kernel` has these tiles in place of its own. `rows` of a product by route are its plan's, which must agree."""
    launch = kernel.run

    def run(*arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        named |= {"BLOCK_IN": tiles.width_in, "BLOCK_OUT": tiles.width_out, "num_warps": tiles.warps, "num_stages": tiles.stages}
        if "BLOCK_N" in named:
            named["BLOCK_N"] = tiles.rows
            widths = dict(zip(kernel.arg_names, arguments, strict=False))
            columns = triton.cdiv(widths["d_out"], tiles.width_out)
            grid = (triton.cdiv(widths["d_in"], tiles.width_in) * columns, *grid[1:])
        return launch(*arguments, grid=grid, warmup=warmup, **named)

    sizes = mock.patch.object(gather_matmul, "block_sizes", lambda *_: (tiles.width_in, tiles.width_out))
    with sizes, mock.patch.object(kernel, "run", run):
        yield


def tiles_of(kernel: Any, form: Form) -> Tiles:
    """What `form` launches `kernel` with; the kernel does not run."""
    found: dict[str, int] = {}
    with mock.patch.object(kernel, "run", lambda *_, **named: found.update(named)):
        form()
    rows = found.get("BLOCK_N", found.get("BLOCK_M", 0))
    return Tiles(rows, found["BLOCK_IN"], found["BLOCK_OUT"], found["num_warps"], found["num_stages"])


def _mark(tiles: Tiles, start: Tiles) -> str:
    return "as it is" if tiles == start else ""
