"""The exchange against one process in float64: outputs, every gradient family, the order of collectives, bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exchange_work import Case, choose, draw, whole
from torch import Tensor

from distributed.exchange import TokenExchange
from distributed.topology import Topology

CASES = {
    "one rank": Case(n_experts=5, top_k=2, tokens=(7,)),
    "even": Case(n_experts=8, top_k=3, tokens=(6, 6)),
    "3 experts over 2 ranks": Case(n_experts=3, top_k=2, tokens=(9, 4)),
    "7 experts over 4 ranks": Case(n_experts=7, top_k=4, tokens=(5, 8, 3, 6)),
    "a rank owns none": Case(n_experts=2, top_k=1, tokens=(4, 5, 6)),
    "a rank has no tokens": Case(n_experts=7, top_k=3, tokens=(5, 0, 4)),
    "nobody has tokens": Case(n_experts=3, top_k=2, tokens=(0, 0)),
    "one token": Case(n_experts=7, top_k=3, tokens=(1, 0, 0, 0)),
    "all tokens to one expert": Case(n_experts=7, top_k=1, tokens=(5, 3, 4), chosen=4),
    "more ranks than choices": Case(n_experts=9, top_k=2, tokens=(6, 6, 6, 6)),
    "one part": Case(n_experts=7, top_k=3, tokens=(5, 6, 4), parts=1),
    "three parts": Case(n_experts=7, top_k=3, tokens=(5, 2, 4), parts=3),
    "recompute": Case(n_experts=7, top_k=3, tokens=(5, 6, 0), recompute=True, visits=3),
    "recompute without early stop": Case(n_experts=7, top_k=3, tokens=(5, 6, 0), recompute=True, early_stop=False),
    "recompute in one part": Case(n_experts=5, top_k=2, tokens=(5, 6), recompute=True, parts=1),
}


def assemble(shares: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Ranks' results as one process has them: tokens and experts concatenated, the replicated router's gradient summed.

    What a rank has no gradient of is left out.
    """
    given = [name for name in ("y", "d_x", "d_up", "d_down", "d_router") if all(share[name] is not None for share in shares)]
    parts = {name: [share[name] for share in shares] for name in given}
    return {name: torch.stack(tensors).sum(0) if name == "d_router" else torch.cat(tensors) for name, tensors in parts.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in expected.items():
        scale = tensor.abs().max().item() if tensor.numel() else 1.0
        difference = (found[name] - tensor).abs().max().item() if tensor.numel() else 0.0
        assert found[name].shape == tensor.shape, name
        assert difference <= tolerance * max(scale, 1e-300), f"{name}: {difference / scale:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(pool: Any, name: str) -> None:
    case = CASES[name]
    shares = pool.run(len(case.tokens), "exchange_work:partitioned", case=case)
    assert_close(assemble(shares), whole(case), 1e-12)
    assert all(share["order"] == shares[0]["order"] for share in shares)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two accelerators")
@pytest.mark.parametrize("move", ["tokens", "weights"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.tokens) == 2])
def test_equals_one_process_over_nccl(pool: Any, name: str, move: str) -> None:
    case = replace(CASES[name], move=move)
    shares = pool.run(2, "exchange_work:partitioned", case=case, device="cuda")
    assert_close(assemble(shares), whole(case), 1e-12)


def test_recomputation_sends_only_rows_and_routes(pool: Any) -> None:
    """No size transfer, and no results where checkpointing stops at the last tensor it needs."""
    case = CASES["recompute"]
    order = pool.run(3, "exchange_work:partitioned", case=case)[0]["order"]
    halves = case.visits * case.parts
    counts = {name: order.count(f"{name} float64") for name in ("dispatch.rows", "combine.rows", "combine.gradients", "dispatch.gradients")}
    assert counts == {"dispatch.rows": 2 * halves, "combine.rows": halves, "combine.gradients": halves, "dispatch.gradients": halves}
    assert order.count("dispatch.sizes int64") == halves


@pytest.mark.parametrize("name", ["even", "recompute", "recompute without early stop"])
def test_nothing_outlives_the_backward(pool: Any, name: str) -> None:
    """No cycle of references keeps rows of a visit until the garbage collector comes."""
    shares = pool.run(len(CASES[name].tokens), "exchange_work:partitioned", case=CASES[name])
    assert all(share["left"] == 0 for share in shares)


@pytest.mark.parametrize("name", CASES)
def test_every_collective_is_awaited_in_order(pool: Any, name: str) -> None:
    order = pool.run(len(CASES[name].tokens), "exchange_work:partitioned", case=CASES[name])[0]["order"]
    for kind in {entry.removeprefix("await ") for entry in order if entry.startswith("await ")}:
        issued = sum(entry.split()[0] == kind for entry in order)
        assert issued == order.count(f"await {kind}"), kind


def test_transfers_run_under_experts(pool: Any) -> None:
    """With two halves one is on its way while the experts of the other work, forward and backward."""
    case = Case(n_experts=4, top_k=2, tokens=(4, 4), visits=1)
    sizes = ["dispatch.sizes int64", "await dispatch.sizes"]
    dispatch, arrive = ["dispatch.routes int64", "dispatch.rows float64"], ["await dispatch.routes", "await dispatch.rows"]
    back = ["dispatch.weight_gradients float64", "dispatch.gradients float64"]
    return_ = ["await dispatch.weight_gradients", "await dispatch.gradients"]
    forward = [*sizes, *dispatch, *sizes, *dispatch, *2 * [*arrive, "experts", "combine.rows float64"], *2 * ["await combine.rows"]]
    backward = [*2 * ["combine.gradients float64"], *2 * ["await combine.gradients", "experts backward", *back], *2 * return_]
    assert pool.run(2, "exchange_work:partitioned", case=case)[0]["order"] == forward + backward


def test_ranks_that_need_no_gradient_join_the_backward(pool: Any) -> None:
    """A rank whose tokens and router are frozen must still send the others their gradients."""
    case = Case(n_experts=3, top_k=2, tokens=(4, 3), visits=1, frozen=(1,))
    shares = pool.run(2, "exchange_work:partitioned", case=case, timeout=60)
    assert shares[0]["order"] == shares[1]["order"]
    expected = whole(Case(n_experts=3, top_k=2, tokens=(4, 3), visits=1))
    assert_close({"d_x": shares[0]["d_x"]}, {"d_x": expected["d_x"][:4]}, 1e-12)
    assert shares[1]["d_x"] is None


def test_bytes_are_one_copy_a_rank(pool: Any) -> None:
    """Rows go out and back and so do gradients; a route is 16 bytes out and its weight's gradient 8 bytes back (float64)."""
    case = Case(n_experts=8, top_k=3, tokens=(6, 9), visits=1)
    shares = pool.run(2, "exchange_work:partitioned", case=case)
    drawn = draw(case)
    owner_TK = choose(case, drawn["x"] @ drawn["router"].T) // 4
    remote_TK = owner_TK != torch.tensor([0] * 6 + [1] * 9)[:, None]
    rows, routes = ([int(part.sum()) for part in remote.split(case.tokens)] for remote in (remote_TK.any(1), remote_TK.sum(1)))
    row_bytes = drawn["x"].shape[1] * 8
    for rank, share in enumerate(shares):
        assert share["sent"] == 2 * sum(rows) * row_bytes + 16 * routes[rank] + 8 * routes[1 - rank]
        assert share["copies"] == 2 * sum(routes) * row_bytes
    assert sum(rows) < sum(routes)


def test_bf16_sums_in_float32(pool: Any) -> None:
    """bf16 rows travel as bf16; weights stay float32 and answers are added in float32: one rounding a token and visit more."""
    case = Case(n_experts=12, top_k=8, tokens=(20, 20, 20, 20), visits=1, dtype=torch.bfloat16)
    found = assemble(pool.run(4, "exchange_work:partitioned", case=case))
    assert found["y"].dtype == torch.bfloat16
    expected = whole(case)
    assert_close({key: value.double() for key, value in found.items()}, {key: value.double() for key, value in expected.items()}, 2e-2)


def test_result_without_gradient_is_refused(pool: Any) -> None:
    messages = pool.run(2, "exchange_work:gradient_dropped")
    assert all("without a gradient" in message for message in messages)


def test_exchange_needs_a_group() -> None:
    topology = Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)
    with pytest.raises(ValueError, match="LocalExchange"):
        TokenExchange(topology)
