"""The compiled kernels on an accelerator: bfloat16 against float64 on the same routes, equal bits, and no read by the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from drawn_routes import normal
from torch import Tensor

from kernels import tile_order
from kernels.expert_mlp import expert_mlp, expert_mlp_reference
from kernels.expert_mlp_triton import FORMS, expert_mlp_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator: compiled kernels run on nothing else"),
]
BAR = 1e-2
TOKENS, TOP_K, N_EXPERTS, D_MODEL, D_EXPERT = 2048, 12, 155, 412, 128


def layer(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Leaves rounded to bfloat16 and given in `dtype`; rows; experts."""
    generator = torch.Generator().manual_seed(0)
    expert_Q = torch.rand(TOKENS, N_EXPERTS, generator=generator).topk(TOP_K).indices.flatten().cuda()
    row_Q = torch.arange(TOKENS, device="cuda").repeat_interleave(TOP_K)
    up, down = (N_EXPERTS, D_MODEL, D_EXPERT), (N_EXPERTS, D_EXPERT, D_MODEL)
    drawn = [normal(n, *shape, dtype=torch.bfloat16) / shape[-2] ** 0.5 for n, shape in enumerate(((TOKENS, D_MODEL), up, down))]
    x, up_EDF, down_EFD = (tensor.cuda().to(dtype) for tensor in drawn)
    weight_Q = torch.rand(TOKENS * TOP_K, generator=generator).cuda().to(torch.promote_types(dtype, torch.float32))
    return [x, weight_Q, up_EDF, down_EFD], row_Q, expert_Q


def bound(operation: Callable[..., Tensor], row_Q: Tensor, expert_Q: Tensor) -> Callable[..., Tensor]:
    return lambda x, weight, up, down: operation(x, row_Q, expert_Q, weight, up, down)


def results(operation: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves, row_Q, expert_Q = layer(dtype)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y = bound(operation, row_Q, expert_Q)(*leaves)
    y.backward(normal(9, *y.shape, dtype=torch.bfloat16).cuda().to(dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_against_float64(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_order, "WINDOW_BYTES", 2**18)
    found, expected = results(partial(expert_mlp_triton, form=form), torch.bfloat16), results(expert_mlp_reference, torch.float64)
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert (mine.double() - theirs).norm() / theirs.norm() <= BAR, f"tensor {number}"


@pytest.mark.parametrize("form", FORMS)
def test_equal_bits_twice(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_order, "WINDOW_BYTES", 2**18)
    first, again = (results(partial(expert_mlp_triton, form=form), torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_host_reads_nothing() -> None:
    results(expert_mlp, torch.bfloat16)  # compiles
    leaves, row_Q, expert_Q = layer(torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        expert_mlp(leaves[0], row_Q, expert_Q, *leaves[1:]).sum()
    finally:
        torch.cuda.set_sync_debug_mode("default")
