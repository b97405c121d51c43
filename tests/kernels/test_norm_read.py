"""What a half-visit reads of the stream: a CPU's operators to the bit, and what the kernels promise beside equalling their reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from drawn_routes import normal, relative_error
from torch import Tensor

from kernels import norm_read_triton as kernels
from kernels.norm_read import norm_read, norm_read_reference
from kernels.norm_read_triton import norm_read_triton

EPS = 1e-5


def leaves(shape: tuple[int, ...], weights: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A float32 stream, what is added to it, gain and bias."""
    x, y = normal(1, *shape, dtype=torch.float32), normal(2, *shape, dtype=weights)
    return x, y, normal(3, shape[-1], dtype=weights) + 1.0, normal(4, shape[-1], dtype=weights)


def wide_stream(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with a float64 stream, to which float32 weights are narrow: the interpreter takes seconds to make bfloat16."""
    x, y, gain, bias = leaves(shape)
    return x.double(), y, gain, bias


def gradients(operation: Any, given: tuple[Tensor, ...], add: bool = True) -> list[Tensor]:
    """Every result and gradient."""
    x, y, gain, bias = (leaf.clone().requires_grad_() for leaf in given)
    # Times one: a stream is never a leaf.
    results = [result for result in operation(x * 1.0, y if add else None, gain, bias, EPS, True) if result is not None]
    torch.autograd.backward(results, [normal(5 + n, *result.shape, dtype=result.dtype) for n, result in enumerate(results)])
    return [result.detach() for result in results] + [leaf.grad for leaf in (x, y, gain, bias) if leaf.grad is not None]


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_on_a_cpu_it_is_the_plain_operators_to_the_bit(weights: torch.dtype) -> None:
    x, y, gain, bias = leaves((2, 7, 36), weights)
    read = norm_read(x, y, gain, bias, EPS)
    added = x + y
    n = F.layer_norm(added, (36,), gain.float(), bias.float(), EPS).to(weights)
    assert torch.equal(read.x, added) and torch.equal(read.n, n)
    assert read.data is not None and torch.equal(read.data, added.to(weights))
    assert norm_read(x, None, gain, bias, EPS).x is x and norm_read(x, None, gain, bias, EPS, data=False).data is None


def test_the_norm_in_float64_passes_gradcheck() -> None:
    x, y, gain, bias = (leaf.double().requires_grad_() for leaf in leaves((3, 6)))
    assert torch.autograd.gradcheck(lambda *given: tuple(norm_read_reference(*given, EPS))[::2], (x, y, gain, bias))


@pytest.mark.parametrize("add", [True, False])
def test_narrow_weights_give_narrow_results_and_gradients_of_each_leafs_type(add: bool) -> None:
    """Within 2^-7: the interpreter cuts bfloat16 off where a device rounds."""
    given = leaves((2, 3, 20), torch.bfloat16)
    found, expected = gradients(norm_read_triton, given, add), gradients(norm_read_reference, given, add)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    assert found[0].dtype == torch.float32 and found[1].dtype == found[2].dtype == torch.bfloat16
    assert all(relative_error(mine, theirs) <= 2**-7 for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24), (5, 1), (1, 1500)])
def test_empty_narrow_and_wide_rows(shape: tuple[int, ...]) -> None:
    given = leaves(shape)
    found, expected = gradients(norm_read_triton, given), gradients(norm_read_reference, tuple(leaf.double() for leaf in given))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    # Not relative: a row of one entry has no deviation, and the gain's gradient is 0.
    assert all(torch.allclose(mine.double(), theirs, rtol=0.0, atol=1e-5) for mine, theirs in zip(found, expected, strict=True))


def test_rows_far_from_zero_keep_their_deviations() -> None:
    """A variance as mean of squares minus square of mean would be 0 or less here."""
    x, _, gain, bias = leaves((4, 64))
    found = norm_read_triton(x + 1e4, None, gain, bias, EPS).n
    assert relative_error(found, norm_read_reference((x + 1e4).double(), None, gain.double(), bias.double(), EPS).n) <= 1e-3


def test_the_stream_passes_through_uncopied_and_its_gradient_comes_back_in_one_pass() -> None:
    x, _, gain, bias = (leaf.requires_grad_() for leaf in leaves((3, 8)))
    stream = x * 1.0
    read = norm_read_triton(stream, None, gain, bias, EPS)
    assert read.x.data_ptr() == stream.data_ptr() and read.x.grad_fn is read.n.grad_fn


def test_equal_bits_twice_and_compiled() -> None:
    given = wide_stream((40, 20))

    def twice(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        return tuple(norm_read_triton(norm_read_triton(x, None, *rest).x, y, *rest))

    first = gradients(twice, given)
    for other in (gradients(twice, given), gradients(torch.compile(twice, fullgraph=True, backend="aot_eager"), given)):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_operators_are_told_to_the_compiler_as_they_are() -> None:
    x, y, gain, bias = wide_stream((1, 3, 16))
    checks = ("test_schema", "test_faketensor")
    for added, narrow in ((y, True), (None, False)):
        arguments = (x, added, gain, bias, EPS, narrow)
        torch.library.opcheck(torch.ops.mootron.norm_read.default, arguments, test_utils=checks)
        *_, mean, rstd = kernels._forward(*arguments)
        gradients_in = (x, y if narrow else None, y, x, gain, mean, rstd, None if added is None else y.dtype)
        torch.library.opcheck(torch.ops.mootron.norm_read_backward.default, gradients_in, test_utils=checks)


def test_rows_past_the_last_are_not_read() -> None:
    def poisoned(seed: int, *shape: int) -> Tensor:
        """NaN behind the last row."""
        drawn = normal(seed, *shape, dtype=torch.float32)
        return torch.cat([drawn, torch.full_like(drawn, torch.nan)])[: shape[0]]

    x, dx, dn = (poisoned(seed, kernels.BLOCK_ROWS + 1, 16) for seed in range(3))
    mean, rstd = (poisoned(seed, kernels.BLOCK_ROWS + 1) for seed in (3, 4))
    found = kernels._backward(dx, None, dn, x, torch.ones(16), mean, rstd, None)
    assert not any(tensor.isnan().any() for tensor in found)
