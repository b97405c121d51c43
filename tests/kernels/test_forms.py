"""The forms of the expert MLP: each is the layer, in windows too; and what the windows are. Interpreted where there is no accelerator."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from drawn_routes import draw, normal, relative_error, with_gradients

from kernels import expert_mlp_triton as room
from kernels import routed_linear_triton, tile_order
from kernels.counting_sort import Plan, counting_sort_reference
from kernels.expert_mlp import expert_mlp_reference
from kernels.expert_mlp_triton import CHOSEN, FORMS, expert_mlp_triton
from kernels.expert_outer_products import expert_outer_products, expert_outer_products_reference
from kernels.fused_expert_mlp import WIDEST_EXPERT
from kernels.routed_linear_triton import routed_linear_triton as routed_linear
from kernels.tile_order import tile_order_reference as ordered
from kernels.tile_order import windows_of

N_ROWS, N_EXPERTS, D_MODEL, D_EXPERT = 20, 2, 24, 16


def layer(n_routes: int = 100) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Leaves of an expert layer, rows and experts."""
    row_Q, expert_Q = draw(1, "even", n_routes, N_EXPERTS, N_ROWS)
    weight_Q = torch.rand(n_routes, generator=torch.Generator().manual_seed(2))
    x, up, down = (N_ROWS, D_MODEL), (N_EXPERTS, D_MODEL, D_EXPERT), (N_EXPERTS, D_EXPERT, D_MODEL)
    x_SD, up_EDF, down_EFD = (normal(n, *shape, dtype=torch.float32) for n, shape in enumerate((x, up, down)))
    return [x_SD, weight_Q, up_EDF, down_EFD], row_Q, expert_Q


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_layer_and_recomputes_to_the_bit(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_order, "WINDOW_BYTES", 1)
    leaves, row_Q, expert_Q = layer()
    expected = with_gradients(lambda x, w, up, down: expert_mlp_reference(x, row_Q, expert_Q, w, up, down), leaves)
    with mock.patch.object(room, "tile_order", wraps=room.tile_order) as order:
        kept, recomputed = (
            with_gradients(lambda x, w, up, down, r=r: expert_mlp_triton(x, row_Q, expert_Q, w, up, down, r, form), leaves)
            for r in (False, True)
        )
    assert order.call_count == (4 if FORMS[form].windowed else 0)
    for mine, again, theirs in zip(kept, recomputed, expected, strict=True):
        assert relative_error(mine, theirs) <= 1e-5 and torch.equal(mine, again)


def test_the_chosen_form_is_what_runs_unasked() -> None:
    leaves, row_Q, expert_Q = layer(30)
    with mock.patch.dict(FORMS, {CHOSEN: FORMS[CHOSEN]._replace(products=mock.Mock(wraps=FORMS[CHOSEN].products))}):
        expert_mlp_triton(leaves[0], row_Q, expert_Q, *leaves[1:])
        assert FORMS[CHOSEN].products.call_count == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("widths", [(300, 20), (20, 300)])
def test_outer_products_by_columns_have_every_block(widths: tuple[int, int]) -> None:
    _, _, expert_Q = layer(40)
    plan = counting_sort_reference(expert_Q, N_EXPERTS, 32)
    x_QD, y_QF = (normal(n, 40, width, dtype=torch.float32) for n, width in enumerate(widths))
    found = expert_outer_products(x_QD, y_QF, plan, by_columns=True)
    assert relative_error(found, expert_outer_products_reference(x_QD.double(), y_QF.double(), plan)) <= 1e-5


def test_an_expert_too_wide_for_the_fused_form_is_told() -> None:
    _, row_Q, expert_Q = layer(30)
    x_SD, up_EDF = torch.ones(N_ROWS, D_MODEL), torch.ones(N_EXPERTS, D_MODEL, WIDEST_EXPERT + 1)
    with pytest.raises(ValueError, match="129"):
        expert_mlp_triton(x_SD, row_Q, expert_Q, torch.ones(30), up_EDF, up_EDF.transpose(1, 2), form="fused")


@pytest.mark.parametrize("load", ["even", "skewed"])
def test_a_window_gathers_rows_that_lie_together(load: str) -> None:
    """8 windows of 4,096 rows: 512 each, and at both edges a tile and the drift of random routes; expert by expert it is all rows."""
    n_rows, windows = 4096, 8
    draws = torch.rand(n_rows * 8, generator=torch.Generator().manual_seed(0))
    row_Q, expert_Q = torch.arange(n_rows).repeat_interleave(8), (draws ** (3 if load == "skewed" else 1) * 12).long()
    plan = counting_sort_reference(expert_Q, 12, 16)
    starts = [0, *plan.tile_ends_E.tolist()]
    first_Q = torch.cat([plan.ends_E.new_zeros(1), plan.ends_E])
    for number, tiles in enumerate(ordered(plan, windows)[: starts[-1]].tensor_split(windows)):
        expert_T = torch.bucketize(tiles, plan.tile_ends_E, right=True)
        place_T = first_Q[expert_T] + (tiles - torch.tensor(starts)[expert_T]) * 16
        rows_T = row_Q[plan.order_Q[place_T]]
        assert rows_T.max() - rows_T.min() <= n_rows / windows * 1.7, f"window {number}"


def test_windows_fit_the_cache_and_are_no_more_than_tiles() -> None:
    def plan_of(n_routes: int) -> Plan:
        return Plan(*(torch.empty(n, dtype=torch.int64, device="meta") for n in (n_routes, 387, 387)), tile_rows=128)

    x_SD = torch.empty(65536, 1024, dtype=torch.bfloat16, device="meta")
    assert windows_of(x_SD, plan_of(65536 * 16)) == 8  # 2^27 bytes in windows of 2^24
    assert windows_of(x_SD, plan_of(65536)) == 2  # 512 tiles of 387 experts, each with one begun
    assert windows_of(x_SD[:100], plan_of(1600)) == windows_of(x_SD[:0], plan_of(0)) == 1


@pytest.mark.parametrize("wanted", range(4))
def test_each_gradient_alone_and_no_other_made(wanted: int) -> None:
    leaves, row_Q, expert_Q = layer(40)
    expected = with_gradients(lambda x, w, up, down: expert_mlp_reference(x, row_Q, expert_Q, w, up, down), leaves)[1 + wanted]
    leaves[wanted].requires_grad_()
    y = expert_mlp_triton(leaves[0], row_Q, expert_Q, *leaves[1:])
    with (
        mock.patch.object(room, "expert_outer_products", wraps=room.expert_outer_products) as outer,
        mock.patch.object(room, "sum_by_row", wraps=room.sum_by_row) as sums,
    ):
        y.backward(normal(99, *y.shape, dtype=y.dtype))
    assert (outer.call_count, sums.call_count) == [(0, 1), (0, 0), (1, 0), (1, 0)][wanted]
    assert leaves[wanted].grad is not None and relative_error(leaves[wanted].grad, expected) <= 1e-5


@pytest.mark.parametrize("wanted", range(3))
def test_each_gradient_of_a_linear_map_alone_and_no_other_made(wanted: int) -> None:
    (x, weight, w, _), row_Q, expert_Q = layer(40)
    leaves = [x, w, weight]
    expected = with_gradients(lambda x, w, weight: routed_linear(x, w, row_Q, row_Q, expert_Q, weight, N_ROWS), leaves)[1 + wanted]
    leaves[wanted].requires_grad_()
    y = routed_linear(x, w, row_Q, row_Q, expert_Q, weight, N_ROWS)
    file = routed_linear_triton
    with (
        mock.patch.object(file, "expert_outer_products", wraps=file.expert_outer_products) as outer,
        mock.patch.object(file, "gather_matmul", wraps=file.gather_matmul) as products,
    ):
        y.backward(normal(99, *y.shape, dtype=y.dtype))
    assert (outer.call_count, products.call_count) == [(0, 1), (1, 0), (0, 1)][wanted]
    assert leaves[wanted].grad is not None and torch.equal(leaves[wanted].grad, expected)
