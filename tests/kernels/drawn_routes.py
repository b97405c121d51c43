"""For the tests of kernels/: seeded routes of every shape that has broken an expert layer, and comparisons. CPU only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

# Decorator of a property: few examples and always the same, as the suite is to be quick and repeatable.
few_examples = settings(max_examples=20, deadline=None, derandomize=True)

# Largest difference over the largest value of the tensor.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}

dtypes = st.sampled_from(sorted(TOLERANCES, key=str))
seeds = st.integers(0, 2**31 - 1)
loads = st.sampled_from(["even", "one expert has all", "first experts empty", "no routes"])


def draw(seed: int, load: str, n_routes: int, n_experts: int, n_rows: int) -> tuple[Tensor, Tensor]:
    """(row_Q, expert_Q) of `n_routes` routes in the order of their rows, with the given load; some rows have none."""
    generator = torch.Generator().manual_seed(seed)
    if load == "no routes" or n_rows == 0:
        n_routes = 0
    row_Q = torch.randint(max(n_rows, 1), (n_routes,), generator=generator).sort().values
    first = {"one expert has all": n_experts - 1, "first experts empty": n_experts // 2}.get(load, 0)
    return row_Q, torch.randint(first, n_experts, (n_routes,), generator=generator)


def normal(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    found, expected = found.double(), expected.double()
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)).item()


def with_gradients(operation: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The result of `operation(*leaves)` and the gradient of every leaf under one fixed cotangent."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    result = operation(*leaves)
    result.backward(normal(99, *result.shape, dtype=result.dtype))
    gradients = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in gradients)
    assert all(gradient.dtype == leaf.dtype for gradient, leaf in zip(gradients, leaves, strict=True))
    return [result.detach(), *gradients]


def assert_equal_to_reference(
    fast: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Result and every gradient within the type's tolerance; the reference runs in float64."""
    found = with_gradients(fast, leaves)
    expected = with_gradients(reference, [leaf.double() for leaf in leaves])
    assert found[0].dtype == dtype
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(mine, theirs) <= TOLERANCES[dtype], f"tensor {number}"
