"""PEER on an accelerator: bfloat16 against float64 on the same picks, equal bits, and no read by the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from drawn_routes import normal
from torch import Tensor

from kernels.peer import peer, peer_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator: compiled kernels run on nothing else"),
]
BAR = 1e-2
TOKENS = 2048
N_ROWS, D_PEER = 256**2, 1024


def memory_layer(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Leaves of PEER rounded to bfloat16 and given in `dtype`; picks, of which half are of one row: its run has many pieces."""
    generator = torch.Generator().manual_seed(1)
    index_TR = torch.randint(N_ROWS, (TOKENS, 128), generator=generator)
    index_TR[:, ::2] = 7
    drawn = [normal(n, *shape, dtype=torch.bfloat16) for n, shape in enumerate(((TOKENS, D_PEER), (N_ROWS, D_PEER), (N_ROWS, D_PEER)))]
    x, down, up = (tensor.cuda().to(dtype) for tensor in (drawn[0], drawn[1] / D_PEER**0.5, drawn[2]))
    weight_TR = torch.rand(TOKENS, 128, generator=generator).cuda().to(torch.promote_types(dtype, torch.float32))
    return [x, weight_TR, down, up], index_TR.cuda()


def memory_results(operation: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves, index_TR = memory_layer(dtype)
    x, weight, down, up = leaves = [leaf.requires_grad_() for leaf in leaves]
    for table in (down, up):
        table.grad_dtype = torch.promote_types(dtype, torch.float32)
    y = operation(x, index_TR, weight, down, up)
    y.backward(normal(9, *y.shape, dtype=torch.bfloat16).cuda().to(dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def test_peer_in_bfloat16_against_float64() -> None:
    found, expected = memory_results(peer, torch.bfloat16), memory_results(peer_reference, torch.float64)
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert (mine.double() - theirs).norm() / theirs.norm() <= BAR, f"tensor {number}"


def test_peer_gives_equal_bits_twice() -> None:
    first, again = memory_results(peer, torch.bfloat16), memory_results(peer, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_host_reads_nothing_of_peer() -> None:
    memory_results(peer, torch.bfloat16)  # compiles
    (x, weight, down, up), index_TR = memory_layer(torch.bfloat16)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, down, up)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        peer(x, index_TR, weight, down, up).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(leaf.grad is not None for leaf in leaves)
