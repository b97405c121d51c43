"""Shapes and numbers drawn from a seed, and what a kernel gives beside what it should.

Shape suffixes: Q routes, E experts, S rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

WIDTHS = (1, 8, 16, 82, 130, 412)


class Pair(NamedTuple):
    """A kernel's tensor and what it should be; integers are to be equal, floats within 1e-5 of the largest entry."""

    name: str
    found: Tensor
    expected: Tensor

    def error(self) -> float:
        """Largest difference over the largest value; for integers 0 or infinity. A NaN is infinity."""
        if self.found.shape != self.expected.shape or not self.found.is_floating_point():
            return 0.0 if torch.equal(self.found, self.expected) else torch.inf
        if self.found.numel() == 0:
            return 0.0
        found, expected = self.found.double(), self.expected.double()
        error = float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
        return error if error == error else torch.inf


class Draw:
    """Numbers and tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def number(self, least: int, most: int) -> int:
        """An integer, both ends included."""
        return int(torch.randint(least, most + 1, (), generator=self._generator))

    def one_of(self, choices: Any) -> Any:
        """One of a sequence."""
        return choices[self.number(0, len(choices) - 1)]

    def normal(self, *shape: int) -> Tensor:
        """Float32 with gaps of NaN between the rows, so that a wrong stride or a missing mask shows."""
        gap = self.number(0, 3)
        block = torch.full((*shape[:-1], shape[-1] + gap), torch.nan)
        block[..., : shape[-1]] = torch.randn(*shape, generator=self._generator)
        return block.to(self._device)[..., : shape[-1]]

    def unwritten(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Where a kernel writes, float32, and where its reference does, float64: NaN until then."""
        return tuple(torch.full(shape, torch.nan, dtype=dtype, device=self._device) for dtype in (torch.float32, torch.float64))  # type: ignore[return-value]

    def weights(self, n_routes: int) -> Tensor:
        """Routing weights in 0..1."""
        return torch.rand(n_routes, generator=self._generator).to(self._device)

    def experts(self, n_routes: int, n_experts: int) -> Tensor:
        """Experts of routes under one of four loads: even, skewed, one has all, the first ones have none."""
        load = self.one_of(("even", "skewed", "one has all", "first ones empty"))
        if load == "one has all":
            return torch.full((n_routes,), self.number(0, n_experts - 1), device=self._device)
        first = n_experts // 2 if load == "first ones empty" else 0
        draw = torch.rand(n_routes, generator=self._generator) ** (4 if load == "skewed" else 1)
        return first + (draw * (n_experts - first)).long().to(self._device)

    def rows(self, n_routes: int, n_rows: int) -> Tensor:
        """Ascending rows; some have no route."""
        return torch.randint(max(n_rows, 1), (n_routes,), generator=self._generator).sort().values.to(self._device)

    def some_rows(self, n_routes: int, n_rows: int) -> Tensor:
        """Rows in any order."""
        return torch.randint(n_rows, (n_routes,), generator=self._generator).to(self._device)

    def places(self, n_routes: int) -> Tensor:
        """A permutation."""
        return torch.randperm(n_routes, generator=self._generator).to(self._device)


def differentiated(
    kernel: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: list[Tensor], cotangent: Tensor
) -> Iterator[Pair]:
    """The result and every gradient."""
    mine, theirs = [leaf.requires_grad_() for leaf in leaves], [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = kernel(*mine), reference(*theirs)
    found.backward(cotangent)
    expected.backward(cotangent.double())
    yield Pair("result", found.detach(), expected.detach())
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert a.grad is not None
        yield Pair(f"gradient {number}", a.grad, torch.zeros_like(b) if b.grad is None else b.grad)
