"""Drawn repeats: pure functions of (seed, step) with the distributions that they are named after."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from model.depth_config import DepthConfig
from model.repeats import PoissonLognormalRepeats, UniformRepeats


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    """Written down, so that a later version of anything cannot change what a run that goes on would draw."""
    uniform, poisson = UniformRepeats(min=2, max=6), PoissonLognormalRepeats(mean=5.0, max=12)
    assert [uniform.draw(3, step) for step in range(12)] == UNIFORM
    assert [poisson.draw(3, step) for step in range(12)] == POISSON
    assert [uniform.draw(4, step) for step in range(12)] != UNIFORM


UNIFORM = [3, 5, 5, 2, 4, 4, 2, 2, 2, 2, 5, 5]
POISSON = [6, 1, 2, 9, 2, 6, 12, 7, 10, 8, 6, 3]


def test_without_sampling_a_step_has_the_configured_repeats() -> None:
    assert {DepthConfig(repeats=5).repeats_of_step(1, step) for step in range(9)} == {5}
    sampled = DepthConfig(repeats=2, sample=UniformRepeats(min=1, max=4))
    assert sampled.most_repeats == 4 and sampled.n_visits == 4 and sampled.n_numbers() == 8
    assert {sampled.repeats_of_step(1, step) for step in range(99)} == {1, 2, 3, 4}


def test_uniform_draws() -> None:
    counts = Counter(UniformRepeats(min=3, max=7).draw(0, step) for step in range(10_000))
    assert set(counts) == {3, 4, 5, 6, 7}
    assert all(abs(count - 2000) < 5 * (10_000 * 0.2 * 0.8) ** 0.5 for count in counts.values())


@pytest.mark.parametrize(("mean", "sigma"), [(4.0, 0.0), (4.0, 0.5), (20.0, 0.5), (32.0, 1.0)])
def test_poisson_lognormal_draws(mean: float, sigma: float) -> None:
    """Mean m and variance (m - 1) + (m - 1)^2 (exp(sigma^2) - 1), of 1 + Poisson(rate) with a lognormal rate of mean m - 1."""
    n = 10_000
    draws = [PoissonLognormalRepeats(mean=mean, sigma=sigma, max=10_000).draw(1, step) for step in range(n)]
    found = sum(draws) / n
    variance = (mean - 1) + (mean - 1) ** 2 * (math.exp(sigma**2) - 1)
    assert abs(found - mean) < 4 * (variance / n) ** 0.5
    assert sum((draw - found) ** 2 for draw in draws) / n == pytest.approx(variance, rel=0.06 if sigma < 1 else 0.3)
    assert min(draws) >= 1


def test_what_exceeds_the_most_is_cut_to_it() -> None:
    free, cut = (PoissonLognormalRepeats(mean=6.0, max=most) for most in (1000, 8))
    draws = [(free.draw(0, step), cut.draw(0, step)) for step in range(500)]
    assert all(cut == min(free, 8) for free, cut in draws)
    assert max(free for free, _ in draws) > 8
