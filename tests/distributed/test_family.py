"""One suite for every slot: the gradient, a resume, another layout, other micro-batches. Runs are real ones, of the trainer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES, Case, values_of
from pool import Pool
from small_run import write_corpus
from test_checkpoint import logical
from test_trainer import state
from torch import Tensor
from trainer_work import losses

from distributed.checkpoint import checkpoint_path
from distributed.checkpoint.reader import Reader
from distributed.fragment import Fragment
from distributed.recipe_file import check_recipe
from model.config import ModelConfig
from model.moeut import MoEUT
from model.sharding import Box

every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    write_corpus(folder)
    return folder


def train(pool: Pool, home: Path, values: dict[str, Any], world: int = 1, stop: int | None = None, resume: bool = False) -> None:
    outcomes = pool.run(world, "trainer_work:run", home=str(home), values=values, stop=stop, resume=resume, timeout=280)
    assert outcomes == ["finished" if stop is None else "stopped"] * world


def checkpoints(home: Path, name: str) -> Path:
    return home / "runs" / name / "checkpoints"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.whole_gradient])
def test_the_gradient_is_what_differences_say(name: str) -> None:
    """Of the loss with its regularisers, along a drawn direction of every parameter, with the choices of the first pass."""
    model, tokens_BT = drawn_model(CASES[name]), torch.randint(300, (2, 7), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    records: list[dict[str, Any]] = [{} for _ in range(model.config.depth.n_numbers())]
    loss_of(model, tokens_BT, records).backward()
    for parameter_name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 1e-5
        with torch.no_grad():
            there, back = (loss_of(model, tokens_BT, records, (parameter, sign * direction)) for sign in (1.0, -1.0))
        error = (there - back) / 2 - (gradient * direction).sum()
        assert abs(error) <= 1e-6 * direction.norm() * max(float(gradient.norm()), 1e-3), parameter_name


def drawn_model(case: Case) -> MoEUT:
    """The case's model in float64, what starts as a constant moved."""
    recipe = check_recipe(values_of(case, Path("/nowhere"), "small", 1), "small")
    model = MoEUT(ModelConfig.model_validate(recipe.model.model_dump())).double().init_parameters(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def loss_of(model: MoEUT, tokens_BT: Tensor, records: list[dict[str, Any]], moved: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Cross-entropy and regularisers; with `moved`, after adding the second tensor to the first, which is put back."""
    if moved is not None:
        before = moved[0].clone()
        moved[0].add_(moved[1])
    output = model(tokens_BT, targets_BT=tokens_BT.roll(-1, 1), records=records)
    if moved is not None:
        moved[0].copy_(before)
    return output.cross_entropy / tokens_BT.numel() + output.balance_loss + output.ponder_B.mean()


@every_case
def test_a_resumed_run_has_equal_bits_and_over_two_ranks_equal_losses(name: str, home: Path, pool: Pool) -> None:
    """Stopped in its middle and resumed as it was; and resumed from the same checkpoint over two ranks, with the same choices."""
    case = CASES[name]
    whole, stopped, wide = (values_of(case, home, f"{name}-{part}", 2 if part == "wide" else 1) for part in ("whole", "stopped", "wide"))
    train(pool, home, with_choices(case, whole, replay="record"))
    for copy in ("stopped", "wide"):
        shutil.copytree(begun(pool, home, name), home / "runs" / f"{name}-{copy}")
    train(pool, home, stopped, resume=True)
    assert state(home, f"{name}-stopped", 4) == state(home, f"{name}-whole", 4)
    expected = losses(str(home), f"{name}-whole")
    assert len(expected) == 4 and losses(str(home), f"{name}-stopped") == expected
    train(pool, home, with_choices(case, wide, replay="use", choices=f"{name}-whole"), world=2, resume=True)
    if not case.exempt:
        assert losses(str(home), f"{name}-wide") == pytest.approx(expected, rel=1e-5)


def begun(pool: Pool, home: Path, name: str) -> Path:
    """The folder of the case's run, stopped after two steps of four; nobody goes on in it."""
    run = home / "runs" / f"{name}-begun"
    if not run.exists():
        train(pool, home, values_of(CASES[name], home, run.name, 1), stop=2)
    return run


def with_choices(case: Case, values: dict[str, Any], **router: str) -> dict[str, Any]:
    """The recipe with recorded choices, where the case has any to record."""
    return values | {"router": {**values.get("router", {}), **router}} if case.replayed else values


@every_case
def test_a_checkpoint_goes_through_two_ranks_and_back(name: str, home: Path, pool: Pool, tmp_path: Path) -> None:
    case = CASES[name]
    source = begun(pool, home, name) / "checkpoints"
    kept = logical(checkpoint_path(source, 2))
    folders = [source, tmp_path / "wide", tmp_path / "back"]
    for world, source, copy in zip((2, 1), folders, folders[1:], strict=False):
        pool.run(world, "family_work:load_and_save", values=values_of(case, home, "any", world), source=str(source), copy=str(copy))
        loaded = logical(checkpoint_path(copy, 2))
        assert loaded.keys() == kept.keys() and all(torch.equal(loaded[key], kept[key]) for key in kept)


@every_case
def test_micro_batches_do_not_change_a_step(name: str, home: Path, pool: Pool) -> None:
    """Steps of plain gradient descent in float64; where a statistic spans one micro-batch, they do differ."""
    case = CASES[name]
    settings: dict[str, Any] = {"steps": 2, "precision": "fp64", "optimizer": "sgd", "lr": 0.1, "clip": None}
    for micro in (8, 3):
        train(pool, home, values_of(case, home, f"{name}-micro{micro}", 1, micro_batch=micro, uneven_batch=True, **settings))
    one, three = (masters(checkpoint_path(checkpoints(home, f"{name}-micro{micro}"), 2)) for micro in (8, 3))
    difference = max(float((one[key] - three[key]).abs().max() / one[key].abs().max()) for key in one)
    assert difference > 1e-9 if case.exempt else difference <= 1e-12


def masters(path: Path) -> dict[str, Tensor]:
    """Every parameter of a checkpoint in float64."""
    reader = Reader(path)
    tensors = {}
    for name, shape in reader.manifest.shapes().items():
        tensors[name] = torch.full((torch.Size(shape).numel(),), torch.nan, dtype=torch.float64)
        reader.fill(Fragment(name, Box.whole(shape), 0, tensors[name].numel(), {"master": tensors[name]}))
    return tensors
