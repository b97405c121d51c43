"""Starting values that depend on the seed and the parameter's name alone, never on where a parameter lives.

Every tensor has a generator of its own; an expert bank is drawn over all experts and then cut to those owned here. Values
are drawn in float32 on the CPU, so models of any width of number, layout and device start alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normal:
    """Gaussian of mean 0; `equal_rows` gives all rows [..., D] one norm and keeps the standard deviation of the whole."""

    std: float
    equal_rows: bool = False

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        x = torch.empty(shape).normal_(0.0, self.std, generator=generator)
        if self.equal_rows and x.numel() > 1:
            std = x.std()
            x /= x.norm(dim=-1, keepdim=True)
            x *= std / x.std()
        return x


@dataclass(frozen=True)
class TruncatedNormal:
    """Gaussian cut at two standard deviations, then rescaled to `std`."""

    std: float

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        x = torch.nn.init.trunc_normal_(torch.empty(shape), generator=generator)
        return x.mul_(self.std / x.std()) if x.numel() > 1 else x


@dataclass(frozen=True)
class Uniform:
    """Uniform between -bound and bound."""

    bound: float

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.empty(shape).uniform_(-self.bound, self.bound, generator=generator)


@dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.full(shape, self.value)


@dataclass(frozen=True)
class Repeated:
    """A narrower tensor's values, `times` times side by side along the last dimension."""

    rule: Normal | Uniform
    times: int

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        narrow = self.rule.draw((*shape[:-1], shape[-1] // self.times), generator)
        return torch.cat([narrow] * self.times, dim=-1)


Rule: TypeAlias = Normal | TruncatedNormal | Uniform | Constant | Repeated
Rules: TypeAlias = dict[str, Rule]


def draw(rule: Rule, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The starting value of parameter `name`: float32, a pure function of the arguments."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return rule.draw(shape, generator)
