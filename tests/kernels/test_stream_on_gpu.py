"""Stream and logits on an accelerator: bfloat16 against float64, equal bits, and no read by the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from drawn_routes import normal
from torch import Tensor

from kernels.norm_read import Read, norm_read, norm_read_reference
from kernels.wide_linear import wide_linear, wide_linear_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator: compiled kernels run on nothing else"),
]
BAR = 1e-2
TOKENS, D_MODEL, N_EXPERTS = 2048, 412, 155


def half_visit(read: Callable[..., Read], linear: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients of a stream that is read and given to a router; all drawn in bfloat16 but the stream."""
    stream = torch.promote_types(dtype, torch.float32)
    shapes = ((TOKENS, D_MODEL), (TOKENS, D_MODEL), (D_MODEL,), (D_MODEL,), (N_EXPERTS, D_MODEL))
    drawn = [normal(n, *shape, dtype=torch.bfloat16).cuda() for n, shape in enumerate(shapes)]
    x, y, gain, bias, w = (leaf.to(dtype if n else stream).requires_grad_() for n, leaf in enumerate(drawn))
    x_after, data, n = read(read(x * 1.0, None, gain, bias, 1e-5).x, y, gain, bias, 1e-5)
    assert data is not None
    results = [x_after, data, linear(n, w)]
    torch.autograd.backward(
        results, [normal(9 + n, *result.shape, dtype=torch.bfloat16).cuda().to(result.dtype) for n, result in enumerate(results)]
    )
    return [tensor.detach() for tensor in results] + [leaf.grad for leaf in (x, y, gain, bias, w)]


def test_stream_and_logits_against_float64() -> None:
    found = half_visit(norm_read, wide_linear, torch.bfloat16)
    expected = half_visit(norm_read_reference, wide_linear_reference, torch.float64)
    assert found[0].dtype == found[2].dtype == torch.float32
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert (mine.double() - theirs).norm() / theirs.norm() <= BAR, f"tensor {number}"


def test_logits_add_in_float32() -> None:
    """Of the same bfloat16 inputs: what a product in float64 gives, but for the order of the sum."""
    x, w = normal(1, TOKENS, D_MODEL, dtype=torch.bfloat16).cuda(), normal(2, N_EXPERTS, D_MODEL, dtype=torch.bfloat16).cuda()
    exact = x.double() @ w.double().t()
    assert (wide_linear(x, w).double() - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_stream_and_logits_have_equal_bits_twice() -> None:
    first, again = (half_visit(norm_read, wide_linear, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_host_reads_nothing_of_stream_and_logits() -> None:
    half_visit(norm_read, wide_linear, torch.bfloat16)  # compiles
    x, gain = torch.randn(TOKENS, D_MODEL, device="cuda"), torch.ones(D_MODEL, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(N_EXPERTS, D_MODEL, device="cuda").bfloat16()
    torch.cuda.set_sync_debug_mode("error")
    try:
        wide_linear(norm_read(x, None, gain, gain, 1e-5).n, w).sum()
    finally:
        torch.cuda.set_sync_debug_mode("default")
