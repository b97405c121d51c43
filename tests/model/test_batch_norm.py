"""Batch norm of queries: torch's in training, running statistics when evaluating, and moves that do not see how a step was cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_balance_work import ALONE
from tiny_models import KINDS, gradients, relative, tiny_config, tiny_model, tiny_tokens, worst
from torch import Tensor, nn

from distributed.step_moves import StepMoves
from model.accounting import parameters
from model.batch_norm import BatchNorm
from model.generate import generate


def layer_of(features: int = 5) -> BatchNorm:
    norm = BatchNorm("queries", features).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor += torch.randn(features, generator=generator)
        norm.running_variance += torch.rand(features, generator=generator)
    return norm


def drawn(n_tokens: int, features: int = 5) -> Tensor:
    return 2 * torch.randn(n_tokens, features, dtype=torch.float64, generator=torch.Generator().manual_seed(n_tokens)) + 1


def torch_s(norm: BatchNorm) -> nn.BatchNorm1d:
    theirs = nn.BatchNorm1d(len(norm.weight)).double()
    theirs.load_state_dict(
        {
            "weight": norm.weight,
            "bias": norm.bias,
            "running_mean": norm.running_mean,
            "running_var": norm.running_variance,
            "num_batches_tracked": torch.tensor(0),
        }
    )
    return theirs


@pytest.mark.parametrize("training", [True, False])
def test_it_is_torch_s_forward_and_backward(training: bool) -> None:
    norm, x_TF, direction = layer_of().train(training), drawn(9).requires_grad_(), drawn(8)[0]
    theirs = torch_s(norm).train(training)
    found = torch.autograd.grad((norm(x_TF, {}).sin() * direction).sum(), [x_TF, norm.weight, norm.bias])
    expected = torch.autograd.grad((theirs(x_TF).sin() * direction).sum(), [x_TF, theirs.weight, theirs.bias])
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) <= 1e-11


def test_a_move_is_by_the_whole_step_however_it_is_cut() -> None:
    x_TF = drawn(12)
    for cut in ([12], [5, 0, 7]):
        norm, before = layer_of(), layer_of()
        total = torch.zeros(11, dtype=torch.float64)
        for part_TF in x_TF.split(cut):
            record: dict[str, Any] = {}
            norm(part_TF, record)
            total += norm.told_by(record)
        norm.move(total)
        assert relative(norm.running_mean, 0.9 * before.running_mean + 0.1 * x_TF.mean(0)) <= 1e-13
        assert relative(norm.running_variance, 0.9 * before.running_variance + 0.1 * x_TF.var(0, correction=0)) <= 1e-13


def test_forwards_alone_move_nothing_and_a_recomputed_visit_counts_once() -> None:
    plain, recomputing = (tiny_model(recompute=recompute, **KINDS["peer_batch"]).train() for recompute in ("none", "visit"))
    before = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    difference, where = worst(gradients(recomputing, tiny_tokens()), gradients(plain, tiny_tokens()))
    assert difference <= 1e-12, where
    assert all(torch.equal(buffer, before[name]) for name, buffer in plain.named_buffers())
    for model in (plain, recomputing):
        moves, output = StepMoves(model, ALONE), model(tiny_tokens())
        output.logits.sum().backward()
        moves.observe(output)
        moves.finish(skipped=False)
    for (name, one), other in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        assert not torch.equal(one, before[name]) and relative(one, other) <= 1e-12


@pytest.mark.parametrize("kind", ["pkm_batch", "peer_batch"])
def test_evaluation_lets_nothing_pass_between_tokens(kind: str) -> None:
    model, start_BT = tiny_model(**KINDS[kind]), tiny_tokens(2, 4)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.running_mean += 0.3
    trained = model.train()(start_BT).logits
    grown_BT = generate(model.eval(), start_BT, 5, temperature=0)
    assert torch.equal(model(grown_BT[:, :-1]).logits[:, 3:].argmax(-1), grown_BT[:, 4:])
    assert relative(trained, model(start_BT).logits) > 1e-3
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(tiny_config(**KINDS[kind])).stored


def test_running_statistics_stay_wide_in_a_narrow_model() -> None:
    norm = BatchNorm("queries", 3)
    norm.running_mean += 0.1001
    norm = norm.bfloat16()
    assert torch.equal(norm.running_mean, torch.full((3,), 0.1001))
    norm.move(torch.zeros(7, dtype=torch.float64))  # a step all of whose windows were damaged
    assert torch.equal(norm.running_mean, torch.full((3,), 0.1001)) and torch.equal(norm.running_variance, torch.ones(3))
    assert (norm.weight.dtype, norm.running_mean.dtype, norm.running_variance.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert norm(torch.ones(2, 3, dtype=torch.bfloat16), {}).dtype == torch.bfloat16
    assert norm(torch.ones(0, 3, dtype=torch.bfloat16), {}).shape == (0, 3)
