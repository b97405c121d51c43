"""peer, gather_dot, gather_sum and their tables' gradients against the references, with torch's operators and with Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from drawn_routes import (
    assert_equal_to_reference,
    draw,
    dtypes,
    few_examples,
    loads,
    normal,
    relative_error,
    seeds,
    with_gradients,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import peer as peer_room
from kernels import rows, segment_sums_triton, table_rows
from kernels import segment_sums as segment_room
from kernels.peer import ACTIVATIONS, peer, peer_reference
from kernels.segment_sums import segment_sums, segment_sums_reference
from kernels.table_rows import gather_dot, gather_dot_reference, gather_sum, gather_sum_reference

ROOMS = (peer_room, segment_room, table_rows)


@pytest.fixture(params=["torch", "triton"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two forms of the operations a test runs."""
    if request.param == "triton":
        for room in ROOMS:
            monkeypatch.setattr(room, "runs_triton", lambda x: True)
    return request.param


def layer(seed: int, index_TR: Tensor, n_rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """x, weight, down and up."""
    weight_TR = normal(seed, *index_TR.shape, dtype=torch.promote_types(dtype, torch.float32))
    tables = (normal(seed + number, n_rows, width, dtype=dtype) / width**0.5 for number in (1, 2))
    return [normal(seed + 3, len(index_TR), width, dtype=dtype), weight_TR, *tables]


def bound(operation: Callable[..., Tensor], index_TR: Tensor, activation: str = "gelu") -> Callable[..., Tensor]:
    """`operation` as a function of its differentiable arguments."""
    return lambda x, weight, down, up: operation(x, index_TR, weight, down, up, activation)


def picks(seed: int, n_tokens: int, n_routes: int, n_rows: int) -> Tensor:
    return torch.randint(n_rows, (n_tokens, n_routes), generator=torch.Generator().manual_seed(seed))


@few_examples
@given(
    seed=seeds,
    load=loads,
    dtype=dtypes,
    n_tokens=st.integers(0, 20),
    n_routes=st.sampled_from([1, 3, 16]),
    n_rows=st.integers(1, 9),
    width=st.sampled_from([1, 16, 82, 412]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_equals_reference(seed, load, dtype, n_tokens, n_routes, n_rows, width, activation):
    _, expert_Q = draw(seed, load, n_tokens * n_routes, n_rows, n_tokens)
    index_TR = expert_Q.view(n_tokens, 0 if load == "no routes" else n_routes)
    leaves = layer(seed, index_TR, n_rows, width, dtype)
    assert_equal_to_reference(bound(peer, index_TR, activation), bound(peer_reference, index_TR, activation), leaves, dtype)
    x_TD, weight_TR, down_ND, up_ND = leaves
    for fast, reference, pair in (
        (gather_dot, gather_dot_reference, [x_TD, down_ND]),
        (gather_sum, gather_sum_reference, [weight_TR, up_ND]),
    ):
        assert_equal_to_reference(lambda a, b, f=fast: f(a, b, index_TR), lambda a, b, f=reference: f(a, b, index_TR), pair, dtype)


def test_chunks_of_one_token_change_nothing(monkeypatch):
    index_TR = picks(1, 30, 8, 11)
    leaves = layer(2, index_TR, 11, 24, torch.float64)
    monkeypatch.setattr(rows, "ENTRIES_A_CHUNK", {"cpu": 1})
    assert len(list(rows.token_chunks(index_TR, 24))) == 30
    assert_equal_to_reference(bound(peer, index_TR), bound(peer_reference, index_TR), leaves, torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    index_TR = picks(3, 4, 3, 5)
    leaves = [leaf.requires_grad_() for leaf in layer(4, index_TR, 5, 6, torch.float64)]
    assert torch.autograd.gradcheck(bound(peer, index_TR, activation), leaves)
    assert torch.autograd.gradcheck(lambda x, table: gather_dot(x, table, index_TR), leaves[::2])
    assert torch.autograd.gradcheck(lambda weight, table: gather_sum(weight, table, index_TR), leaves[1::2])


def test_every_expert_picked_with_weight_one_is_a_dense_layer():
    index_TR = torch.arange(7).expand(5, 7)
    x_TD, _, down_ND, up_ND = leaves = layer(5, index_TR, 7, 12, torch.float64)
    leaves[1] = torch.ones(5, 7, dtype=torch.float64)
    expected = torch.nn.functional.gelu(x_TD @ down_ND.t()) @ up_ND
    assert relative_error(bound(peer, index_TR)(*leaves), expected) <= 1e-14


def test_parts_of_the_width_add_to_the_whole():
    """The tables cut along D: partial dot products are added before the activation, sums are laid side by side."""
    index_TR = picks(6, 9, 4, 13)
    leaves = layer(7, index_TR, 13, 12, torch.float64)

    def in_parts(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        parts = [slice(0, 5), slice(5, 12)]
        dot_TR = sum(gather_dot(x[:, part], down[:, part], index_TR) for part in parts)
        coefficient_TR = weight * ACTIVATIONS["gelu"].value(dot_TR)
        return torch.cat([gather_sum(coefficient_TR, up[:, part], index_TR) for part in parts], 1)

    assert_equal_to_reference(in_parts, bound(peer, index_TR), leaves, torch.float64)


@pytest.mark.parametrize("wanted", range(4))
def test_each_gradient_alone(wanted):
    index_TR = picks(8, 12, 3, 6)
    leaves = layer(9, index_TR, 6, 8, torch.float64)
    expected = with_gradients(bound(peer, index_TR), leaves)[1 + wanted]
    leaves[wanted].requires_grad_()
    y_TD = bound(peer, index_TR)(*leaves)
    y_TD.backward(normal(99, *y_TD.shape, dtype=y_TD.dtype))
    assert torch.equal(leaves[wanted].grad, expected)


def test_no_gradient_comes_where_none_is_given():
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> None:
            return None

    index_TR = picks(10, 4, 3, 5)
    leaves = [leaf.requires_grad_() for leaf in layer(11, index_TR, 5, 6, torch.float64)]
    Stop.apply(bound(peer, index_TR)(*leaves)).sum().backward()
    assert all(leaf.grad is None for leaf in leaves)


def test_kept_are_the_arguments_and_one_number_a_route(form):
    index_TR = picks(12, 20, 6, 30)
    leaves = [leaf.requires_grad_() for leaf in layer(13, index_TR, 30, 10, torch.float32)]
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bound(peer, index_TR)(*leaves)
    assert sorted(kept) == sorted([leaf.shape for leaf in leaves] + [index_TR.shape] * 2)


class Largest(TorchDispatchMode):
    """The most entries of a tensor that an operator gave."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_rows_are_gathered_a_chunk_at_a_time(monkeypatch):
    index_TR = picks(14, 64, 8, 5)
    x_TD, weight_TR, table_ND, _ = layer(15, index_TR, 5, 16, torch.float32)
    monkeypatch.setattr(rows, "ENTRIES_A_CHUNK", {"cpu": 1024})
    with Largest() as largest:
        table_rows._dot._init_fn(x_TD, table_ND, index_TR)
        table_rows._sum._init_fn(weight_TR, table_ND, index_TR)
        segment_room._sums._init_fn(index_TR, 5, [weight_TR], [x_TD])
    assert largest.entries == 1024 == x_TD.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_bits_twice(form, dtype):
    index_TR = picks(16, 12, 6, 9)
    leaves = layer(17, index_TR, 9, 20, dtype)
    first, again = (with_gradients(bound(peer, index_TR), leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_bfloat16_against_float64():
    index_TR = picks(18, 50, 12, 20)
    leaves = layer(19, index_TR, 20, 64, torch.bfloat16)
    found = with_gradients(bound(peer, index_TR), leaves)
    expected = with_gradients(bound(peer_reference, index_TR), [leaf.double() for leaf in leaves])
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.double() - theirs).norm() / theirs.norm() <= 5e-3


def test_sums_of_bfloat16_are_kept_in_float32():
    """A thousand ones: a sum kept in bfloat16 would stop at 256. 1,001 takes more digits than bfloat16 has."""
    ones = torch.ones(1, 1, dtype=torch.bfloat16)
    assert gather_sum(torch.ones(1, 1000), ones, torch.zeros(1, 1000, dtype=torch.int64)).item() == 1000
    for wanted, expected in ((torch.bfloat16, 1000), (torch.float32, 1001)):
        table_ND = ones.clone().requires_grad_()
        table_ND.grad_dtype = wanted
        gather_dot(ones.expand(1001, 1), table_ND, torch.zeros(1001, 1, dtype=torch.int64)).sum().backward()
        assert table_ND.grad.dtype == wanted and table_ND.grad.item() == expected


def test_strided_arguments(form):
    index_TR = picks(20, 6, 12, 7)[:, ::2]
    leaves = [leaf.t().contiguous() for leaf in layer(21, index_TR, 7, 10, torch.float32)]

    def strided(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *transposed: bound(operation, index_TR)(*(leaf.t() for leaf in transposed))[:, ::2]

    assert_equal_to_reference(strided(peer), strided(peer_reference), leaves, torch.float32)


def piece_edges() -> Iterator[list[int]]:
    """Routes of each row: runs that begin and end before, at and after the edges of pieces of 8."""
    yield from ([n] for n in (7, 8, 9, 16, 17))
    yield from ([3, n, 5] for n in (4, 5, 6, 12, 13, 14, 29))
    yield [0, 40, 0, 8, 8, 1, 15, 0]


@pytest.mark.parametrize("counts", piece_edges(), ids=str)
def test_long_runs_are_added_in_pieces(counts, monkeypatch):
    monkeypatch.setattr(segment_sums_triton, "PIECE", 8)
    index_Q = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    index_TR = index_Q[torch.randperm(len(index_Q), generator=torch.Generator().manual_seed(0))][:, None]
    pair = [normal(22, *index_TR.shape, dtype=torch.float32)], [normal(23, len(index_TR), 3, dtype=torch.float32)]
    expected = segment_sums_reference(index_TR, len(counts), *([tensor.double() for tensor in side] for side in pair))
    (found,) = segment_sums_triton.segment_sums_triton(index_TR, len(counts), *pair)
    assert relative_error(found, expected[0]) <= 1e-6
    assert relative_error(segment_sums(index_TR, len(counts), *pair)[0], expected[0]) <= 1e-6


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="'swish' is none of relu, gelu"):
        bound(peer, picks(24, 2, 2, 2), "swish")(*layer(25, picks(24, 2, 2, 2), 2, 2, torch.float32))


def test_operators_are_told_to_the_compiler_as_they_are(form):
    index_TR = picks(26, 5, 3, 7)
    x, weight, down, up = (leaf.requires_grad_() for leaf in layer(27, index_TR, 7, 8, torch.float32))
    checks, operators = ("test_schema", "test_autograd_registration", "test_faketensor"), torch.ops.mootron
    torch.library.opcheck(operators.peer.default, (x, index_TR, weight, down, up, "gelu"), test_utils=checks)
    torch.library.opcheck(operators.gather_dot.default, (x, down, index_TR), test_utils=checks)
    torch.library.opcheck(operators.gather_sum.default, (weight, up, index_TR), test_utils=checks)
    values = [weight.detach()], [x.detach()]
    torch.library.opcheck(operators.segment_sums.default, (index_TR, 7, *values), test_utils=("test_schema", "test_faketensor"))


def test_compiled_whole_it_gives_the_same(form):
    index_TR = picks(28, 6, 4, 9)
    leaves = layer(29, index_TR, 9, 8, torch.float32)

    def both(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        dot_TR = gather_dot(x, up, index_TR)
        return bound(peer, index_TR)(x * 2, weight, down, up) + gather_sum(dot_TR, down, index_TR)

    eager = with_gradients(both, leaves)
    compiled = with_gradients(torch.compile(both, fullgraph=True, backend="aot_eager"), leaves)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(eager, compiled, strict=True))
