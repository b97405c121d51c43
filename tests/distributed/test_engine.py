"""Engines: equal over layouts and over forms, exact sums, bf16 accumulation, gradients that are not finite, live state."""

from __future__ import annotations

from typing import Any

import engine_work
import pytest
import torch
from fragments import whole, worst
from pool import Pool
from small_model import SmallModel

from distributed.engine_choice import choose_engine
from distributed.errors import RunError
from distributed.topology import Topology

ALONE = Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)


def figures(results: list[dict[str, Any]], key: str) -> list[float]:
    """A step's figure: the loss summed over ranks, or the gradient norm on which all ranks agree."""
    if key == "loss":
        return [sum(result["reports"][step]["loss"] for result in results) for step in range(len(results[0]["reports"]))]
    norms = [[report["grad_norm"] for report in result["reports"]] for result in results]
    assert all(norm == norms[0] for norm in norms)
    return norms[0]


@pytest.mark.parametrize(
    ("world", "expert_parallel", "zero_stage", "micro"),
    [(1, 1, 1, 2), (2, 1, 2, 3), (2, 2, 1, 3), (3, 3, 2, 2), (4, 2, 1, 3), (4, 4, 2, 1)],
    ids=lambda value: str(value),
)
def test_layouts_agree_with_one_process(pool: Pool, world: int, expert_parallel: int, zero_stage: int, micro: int) -> None:
    """SGD, so that a wrong scale shows; three experts, so that they are uneven, and rank 0 of (4, 4) has none."""
    alone = pool.run(1, "engine_work:run", engine="plain", optimizer="sgd", micro=1)
    results = pool.run(world, "engine_work:run", expert_parallel=expert_parallel, zero_stage=zero_stage, micro=micro, optimizer="sgd")
    assert figures(results, "loss") == pytest.approx(figures(alone, "loss"), rel=1e-5)
    assert figures(results, "grad_norm") == pytest.approx(figures(alone, "grad_norm"), rel=1e-5)
    assert worst(whole(results), whole(alone)) <= 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-6)])
def test_plain_and_deepspeed_agree(pool: Pool, dtype: str, tolerance: float) -> None:
    arguments: dict[str, Any] = {"steps": 10, "micro": 4, "dtype": dtype}
    plain = pool.run(1, "engine_work:run", engine="plain", **arguments)
    for zero_stage in (1, 2):
        deep = pool.run(1, "engine_work:run", engine="deepspeed", zero_stage=zero_stage, **arguments)
        assert figures(deep, "loss") == pytest.approx(figures(plain, "loss"), rel=tolerance)
        for state in ("master", "exp_avg", "exp_avg_sq"):
            assert worst(whole(deep, state), whole(plain, state)) <= tolerance
        assert all(torch.equal(deep[0]["weights"][name], plain[0]["weights"][name]) for name in plain[0]["weights"])


@pytest.mark.parametrize(("world", "zero_stage", "engine"), [(1, 1, "plain"), (2, 1, "deepspeed"), (2, 2, "deepspeed")])
def test_bf16_gradient_over_64_micro_batches(pool: Pool, world: int, zero_stage: int, engine: str) -> None:
    """Against float64 with bf16-rounded weights and inputs; a sum kept in bf16 is off by more than 2%."""
    model = SmallModel(ALONE).bfloat16().double()
    for number in range(64):
        rows, targets = engine_work.batch(number, torch.bfloat16)
        (model(rows.double()) - targets.double()).square().sum().backward()
    parts = pool.run(world, "engine_work:accumulated_gradient", zero_stage=zero_stage, engine=engine)
    for name, parameter in model.named_parameters():
        pieces = sorted((part[name] for part in parts if name in part), key=lambda piece: piece[0])
        gradient = torch.cat([piece for _, piece in pieces]).double()
        expected = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad.flatten()
        assert (gradient - expected).norm() <= 5e-3 * expected.norm(), name


@pytest.mark.parametrize(
    ("world", "zero_stage", "engine", "expected"), [(1, 1, "plain", 602), (2, 1, "deepspeed", 1204), (2, 2, "deepspeed", 1200)]
)
def test_bf16_table_has_a_float32_gradient(pool: Pool, world: int, zero_stage: int, engine: str, expected: int) -> None:
    """Over visits as over micro-batches: 301 reads twice a rank, where a sum kept in bf16 stops at 256.

    301 takes 9 digits, of which bf16 has 8: stage 2 rounds each micro-batch's sum once, as its bucket has the parameters' type.
    """
    parts = pool.run(world, "engine_work:gradient_of_a_value", engine=engine, zero_stage=zero_stage, visits=301, micro=2)
    assert torch.cat([piece for part in parts for piece in part]).tolist() == [expected] * 4


@pytest.mark.parametrize(("world", "dtype", "zero_stage"), [(1, "float32", 1), (2, "float32", 1), (2, "bfloat16", 2)])
def test_gradient_that_is_not_finite_is_skipped(pool: Pool, world: int, dtype: str, zero_stage: int) -> None:
    engine = "plain" if world == 1 else "deepspeed"
    arguments: dict[str, Any] = {"dtype": dtype, "zero_stage": zero_stage, "engine": engine, "micro": 3}
    before = pool.run(world, "engine_work:run", steps=2, **arguments)
    after = pool.run(world, "engine_work:run", steps=3, poison=2, **arguments)
    beyond = pool.run(world, "engine_work:run", steps=4, poison=2, **arguments)
    for result in after:
        assert [report["skipped"] for report in result["reports"]] == [False, False, True]
        assert result["applied"] == 2
    for state in ("master", "exp_avg", "exp_avg_sq"):
        assert all(
            torch.equal(left, right) for left, right in zip(whole(before, state).values(), whole(after, state).values(), strict=True)
        )
    assert not beyond[0]["reports"][3]["skipped"]
    assert worst(whole(beyond), whole(after)) > 1e-4


def test_empty_micro_batches(pool: Pool) -> None:
    """Six rows of a rank in eight micro-batches: the last two are empty, and join all collectives."""
    alone = pool.run(1, "engine_work:run", engine="plain", micro=1)
    for zero_stage in (1, 2):
        results = pool.run(2, "engine_work:run", micro=8, zero_stage=zero_stage)
        assert figures(results, "grad_norm") == pytest.approx(figures(alone, "grad_norm"), rel=1e-5)


@pytest.mark.parametrize(("world", "expert_parallel"), [(1, 1), (3, 3), (4, 2)])
def test_fragments_are_live(pool: Pool, world: int, expert_parallel: int) -> None:
    engine = "plain" if world == 1 else "deepspeed"
    for result in pool.run(world, "engine_work:live_views", expert_parallel=expert_parallel, engine=engine):
        assert all((weight == 1.0).all() for weight in result["weights"].values())
        assert result["applied"] == 7
        for fragment in result["state"]:
            assert [float(fragment[state].unique()) for state in ("master", "exp_avg", "exp_avg_sq")] == [1.0, 2.0, 3.0]


def test_nothing_of_an_engine_outlives_its_topology(pool: Pool) -> None:
    """A group that is held keeps its threads, and they do not sleep."""
    before, meanwhile, after = (pool.run(2, "engine_work:group_threads", train=train) for train in (False, True, False))
    assert all(more > fewer for more, fewer in zip(meanwhile, before, strict=True))
    assert after == before


def test_engine_is_refused_where_it_cannot_work() -> None:
    train = engine_work.train_config()
    with pytest.raises(RunError, match=r"4 workers need train\.engine=deepspeed"):
        choose_engine(train.model_copy(update={"engine": "plain"}), 4, connected=True)
    with pytest.raises(RunError, match="fp64"):
        choose_engine(train.model_copy(update={"precision": "fp64"}), 2, connected=True)
    with pytest.raises(RunError, match="fp64"):
        choose_engine(train.model_copy(update={"precision": "fp64", "engine": "deepspeed"}), 1, connected=True)
    assert (choose_engine(train, 1, connected=False), choose_engine(train, 1, connected=True)) == ("plain", "deepspeed")
