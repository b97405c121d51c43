"""The Triton kernels against their references, under Triton's interpreter where there is no accelerator."""

from __future__ import annotations

import math

import pytest
import torch
from drawn_routes import draw as draw_routes
from drawn_routes import normal, with_gradients

from benchmarks.kernel_cases import CASES
from benchmarks.kernel_draw import Draw, Pair
from kernels.counting_sort import BLOCK, SCAN_BLOCKS, counting_sort, counting_sort_reference
from kernels.expert_mlp_triton import CHOSEN, FORMS, expert_mlp_triton
from kernels.gather_matmul import gather_matmul, gather_matmul_reference
from kernels.peer_triton import peer_triton
from kernels.routed_linear_triton import routed_linear_triton
from kernels.rows import whole_rows

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # the sigmoid of masked logits is 0

BAR = 1e-5
SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", CASES)
def test_a_kernel_equals_its_reference(kernel: str, seed: int) -> None:
    pairs = list(CASES[kernel](Draw(1000 + seed)))
    assert pairs
    for pair in pairs:
        assert pair.error() <= BAR, f"{pair.name}: {pair.error():.1e}"


def test_an_error_is_seen() -> None:
    x = torch.ones(3)
    assert Pair("", x, x).error() == 0.0 and Pair("", torch.tensor([1, 2]), torch.tensor([1, 3])).error() == math.inf
    assert Pair("", x.where(x < 0, torch.nan), x).error() == math.inf and Pair("", x, x[:2]).error() == math.inf
    assert Pair("", x, torch.tensor([1.0, 1.0, 2.0])).error() == 0.5


def layer(seed: int, load: str = "even") -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Leaves of an expert layer, rows and experts."""
    row_Q, expert_Q = draw_routes(seed, load, 90, 5, 20)
    weight_Q = torch.rand(len(row_Q), generator=torch.Generator().manual_seed(seed))
    shapes = ((20, 24), None, (5, 24, 16), (5, 16, 24))
    leaves = [weight_Q if shape is None else normal(seed + n, *shape, dtype=torch.float32) for n, shape in enumerate(shapes)]
    return leaves, row_Q, expert_Q


def test_more_blocks_of_routes_than_one_turn_of_the_scan_takes() -> None:
    expert_Q = torch.randint(3, (SCAN_BLOCKS * BLOCK + 200,), generator=torch.Generator().manual_seed(0))
    found, expected = counting_sort(expert_Q, 3, 32), counting_sort_reference(expert_Q, 3, 32)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))


@pytest.mark.parametrize("load", ["even", "one expert has all", "first experts empty", "no routes"])
def test_recomputing_and_repeating_give_the_same_bits(load: str) -> None:
    leaves, row_Q, expert_Q = layer(1, load)
    first, again, recomputed = (
        with_gradients(lambda x, weight, up, down, r=r: expert_mlp_triton(x, row_Q, expert_Q, weight, up, down, r), leaves)
        for r in (False, False, True)
    )
    for other in (again, recomputed):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_rows_past_the_last_route_are_left_as_they_are() -> None:
    plan = counting_sort(torch.zeros(40, dtype=torch.int64), 2, 32)  # two tiles, the second a quarter full
    x_SD, out_OF = torch.full((64, 16), torch.nan), torch.full((64, 16), 7.0)
    x_SD[:40] = 1.0
    gather_matmul(x_SD, torch.ones(2, 16, 16), plan, out_OF)
    assert (out_OF[:40] == 16).all() and (out_OF[40:] == 7).all()


def test_what_is_kept_for_the_backward_has_no_row_a_route_of_model_width() -> None:
    leaves, row_Q, expert_Q = layer(2)
    for recompute in (False, True):
        kept: list[torch.Size] = []

        def keep(tensor: torch.Tensor, into: list[torch.Size] = kept) -> torch.Tensor:
            into.append(tensor.shape)
            return tensor

        x, weight, up, down = (leaf.clone().requires_grad_() for leaf in leaves)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            expert_mlp_triton(x, row_Q, expert_Q, weight, up, down, recompute)
        assert (len(row_Q), 24) not in kept and ((len(row_Q), 16) in kept) is not recompute


def test_operators_are_told_to_the_compiler_as_they_are() -> None:
    leaves, row_Q, expert_Q = layer(3)
    x, weight, up, down = (leaf.requires_grad_() for leaf in leaves)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mootron.expert_mlp.default, (x, row_Q, expert_Q, weight, up, down, False, CHOSEN), test_utils=checks)
    arguments = (x, up, row_Q, row_Q, expert_Q, weight, 20)
    torch.library.opcheck(torch.ops.mootron.routed_linear.default, arguments, test_utils=checks)


def test_compiled_whole_it_gives_the_same() -> None:
    leaves, row_Q, expert_Q = layer(4)

    def both(x: torch.Tensor, weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        hidden = routed_linear_triton(x, up, row_Q, row_Q, expert_Q, weight, 20)
        return expert_mlp_triton(x * 2, row_Q, expert_Q, weight, up, down) + hidden.sum()

    eager = with_gradients(both, leaves)
    compiled = with_gradients(torch.compile(both, fullgraph=True, backend="aot_eager"), leaves)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(eager, compiled, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_of_an_expert_is_not_lost(form: str) -> None:
    """A ReLU made of a maximum would turn it into 0, and training would go on with an expert that is gone."""
    up, down = torch.ones(2, 8, 16), torch.ones(2, 16, 8)
    up[1, 3, 5] = torch.nan
    y_SD = expert_mlp_triton(torch.ones(3, 8), torch.arange(3), torch.tensor([0, 1, 0]), torch.ones(3), up, down, form=form)
    assert y_SD.isnan().all(1).tolist() == [False, True, False] and y_SD[::2].isfinite().all()


def test_a_nan_of_a_table_is_not_lost() -> None:
    down, up = torch.ones(4, 8), torch.ones(4, 8)
    down[2, 1] = torch.nan
    y_TD, _ = peer_triton(torch.ones(2, 8), torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2), down, up, "relu")
    assert y_TD.isnan().all(1).tolist() == [False, True]


def test_columns_far_apart_are_copied_together() -> None:
    """The kernels count columns in 32 bits."""
    x_DS, plan = torch.randn(16, 40), counting_sort_reference(torch.zeros(40, dtype=torch.int64), 1, 32)
    w_EDF, found, expected = torch.randn(1, 16, 16), torch.empty(40, 16), torch.empty(40, 16)
    gather_matmul(x_DS.t(), w_EDF, plan, found)
    gather_matmul_reference(x_DS.t(), w_EDF, plan, expected)
    torch.testing.assert_close(found, expected)
    assert whole_rows(x_DS.t()).stride() == (16, 1) and whole_rows(x_DS) is x_DS
