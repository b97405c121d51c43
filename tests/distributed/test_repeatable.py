"""Ten whole steps, twice: the same bits of every master and moment. And a forward and backward in which the host waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.step_models import Contestant, Setting
from benchmarks.tokens import zipf_tokens
from distributed.deterministic import make_deterministic
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.depth_config import DepthConfig
from model.moe_config import SigmaMoEConfig

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
LENGTH, VOCABULARY = 32, 60
CONFIG = ModelConfig(
    vocab_size=VOCABULARY,
    d_model=48,
    depth=DepthConfig(group=2, repeats=2),
    attention=SwitchHeadConfig(n_heads=2, d_head=16, n_experts=3, top_k=2),
    feed_forward=SigmaMoEConfig(n_experts=31, d_expert=16, top_k=6),
)


@pytest.fixture
def deterministic() -> Iterator[None]:
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


def contestant(device: str) -> Contestant:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return Contestant(CONFIG, Setting(4, 2, LENGTH, dtype, device, recompute="none", compiled=False))


def state_after(steps: int, device: str) -> list[Tensor]:
    model = contestant(device)
    for step in range(steps):
        model.step(zipf_tokens(4, LENGTH + 1, VOCABULARY, seed=step).to(device))
    return [tensor.clone() for fragment in model.engine.fragments() for tensor in fragment.tensors.values()]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", DEVICES)
def test_ten_steps_twice_give_equal_bits(device: str) -> None:
    first, again, shorter = state_after(10, device), state_after(10, device), state_after(9, device)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, shorter, strict=True))


@NEEDS_GPU
@pytest.mark.gpu
def test_the_host_waits_for_nothing_in_a_forward_and_backward() -> None:
    model = contestant("cuda")
    tokens_BT = zipf_tokens(2, LENGTH + 1, VOCABULARY).cuda()
    model.step(tokens_BT)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = model.engine.module(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:])
        (output.cross_entropy + output.balance_loss).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
