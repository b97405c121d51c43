"""Tuning changes how a product is tiled and nothing else, and finds what is faster. Triton's interpreter."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.kernel_operations import draw_routes
from benchmarks.tune import LADDERS, PRODUCTS, Tiles, launched_with, neighbours, search, tiles_of
from kernels.expert_outer_products import expert_outer_products
from kernels.gather_matmul import Dot, gather_matmul

START = Tiles(32, 32, 64, 4, 3)


def products(routes: Any, x_SD: torch.Tensor, w_EDF: torch.Tensor) -> list[torch.Tensor]:
    out_QF, dot_Q = x_SD.new_zeros(len(routes.in_Q), w_EDF.shape[2]), torch.zeros_like(routes.scale_Q)
    gather_matmul(x_SD, w_EDF, routes.plan, out_QF, from_Q=routes.in_Q)
    dotted_QF = torch.zeros_like(out_QF)
    gather_matmul(x_SD, w_EDF, routes.plan, dotted_QF, from_Q=routes.in_Q, dot=Dot(out_QF, None, dot_Q, gate=True))
    return [out_QF, dotted_QF, dot_Q, expert_outer_products(x_SD, out_QF, routes.plan, x_Q=routes.in_Q)]


def test_results_are_the_same_with_other_tiles() -> None:
    torch.manual_seed(0)
    routes = draw_routes(12, 2, 2, (1, 1), torch.float32, "cpu")
    x_SD, w_EDF = torch.randn(12, 40), torch.randn(2, 40, 72)
    expected = products(routes, x_SD, w_EDF)
    for kernel, usual in (PRODUCTS["up"], START), (PRODUCTS["d up"], START._replace(width_in=64)):
        assert tiles_of(kernel, lambda: products(routes, x_SD, w_EDF)) == usual
        with launched_with(kernel, Tiles(64, 16, 32, 8, 2)):
            found = products(routes, x_SD, w_EDF)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected, strict=True))


def test_a_search_walks_to_the_fastest_and_stops() -> None:
    target = Tiles(128, 64, 64, 8, 2)

    def seconds_of(tiles: Tiles) -> float:
        steps = sum(abs(LADDERS[name].index(getattr(tiles, name)) - LADDERS[name].index(getattr(target, name))) for name in LADDERS)
        return torch.inf if tiles.stages == 4 else 1.0 + steps

    found = search(START, seconds_of, 100.0)
    assert min(found, key=lambda tiles: found[tiles]) == target
    ticks = iter(range(100))
    assert len(search(START, seconds_of, 4, clock=lambda: next(ticks))) == 4
    assert len(set(neighbours(START))) == 9 and START not in neighbours(START)
