"""Logits of narrow inputs in float32. On a CPU the accelerator's operator multiplies widened inputs: its roundings are seen here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from drawn_routes import normal, relative_error, with_gradients
from torch import Tensor

from kernels import wide_linear as module
from kernels.wide_linear import wide_linear


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runs_triton", lambda x: x.dtype != torch.float64)


def leaves(out: int, rows: tuple[int, ...] = (2, 40), dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [normal(1, *rows, 24, dtype=dtype), normal(2, out, 24, dtype=dtype)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_on_a_cpu_it_is_the_product_of_widened_inputs_to_the_bit(dtype: torch.dtype) -> None:
    x, w = leaves(7, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    assert torch.equal(wide_linear(x, w), F.linear(x.to(wide), w.to(wide)))


@pytest.mark.usefixtures("as_on_an_accelerator")
@pytest.mark.parametrize("out", [1, 8, 43])
def test_narrow_inputs_give_float32_sums_and_gradients_rounded_twice(out: int) -> None:
    given = leaves(out)
    y, dx, dw = with_gradients(wide_linear, given)
    exact = with_gradients(wide_linear, [leaf.double() for leaf in given])
    assert y.dtype == torch.float32 and relative_error(y, exact[0]) <= 1e-6
    for mine, theirs in ((dx, exact[1]), (dw, exact[2])):
        assert mine.shape == theirs.shape and (mine.double() - theirs).norm() <= 4e-3 * theirs.norm()


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_many_rows_are_added_in_float32() -> None:
    """Added in bfloat16 the gradient of the weights would stay at 256."""
    x, w = torch.ones(3000, 1, dtype=torch.bfloat16), torch.ones(3, 1, dtype=torch.bfloat16, requires_grad=True)
    wide_linear(x, w).sum().backward()
    assert torch.equal(w.grad, torch.full((3, 1), 3000.0).bfloat16())


@pytest.mark.usefixtures("as_on_an_accelerator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_inputs_are_multiplied_as_they_are(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_forward", None)  # not to be called
    x, w = leaves(5, dtype=dtype)
    assert torch.equal(wide_linear(x, w), F.linear(x, w))


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_no_rows() -> None:
    y, dx, dw = with_gradients(wide_linear, leaves(5, rows=(0, 3)))
    assert y.shape == (0, 3, 5) and dx.shape == (0, 3, 24) and not dw.any()


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_it_compiles_whole_and_the_operator_is_told_as_it_is() -> None:
    given = leaves(11)
    compiled = torch.compile(wide_linear, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(with_gradients(wide_linear, given), with_gradients(compiled, given), strict=True))
    arguments = (given[0].flatten(0, 1).requires_grad_(), given[1].requires_grad_())
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mootron.wide_linear.default, arguments, test_utils=checks)
