"""Against the official library: tensors that RobertCsordas/moeut @87f0497 gave in float64 (tests/golden).

Bars: logits, cross-entropy and every gradient 1e-9 relative; eight AdamW steps and the final weights 1e-7. The stored
regulariser was added up in float32, so it is compared to one unit of float32 there; that it is right beyond that is
proved by the gradients of cross-entropy plus regulariser.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tiny_models import relative, worst
from torch import Tensor

from model.convert import load_official, official_gradients, to_official

GOLDEN = Path(__file__).parent.parent / "golden"
FLOAT32_UNIT = 2.0**-23


class Golden:
    def __init__(self, name: str) -> None:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


@pytest.fixture(params=["moeut_g2", "moeut_g3_dense_attention"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_first_batch(golden: Golden) -> None:
    model = load_official(golden.config, golden.below("weight."))
    window_BT = golden.tensors["tokens"][0]
    output = model(window_BT[:, :-1])
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), window_BT[:, 1:].flatten())
    (cross_entropy + output.balance_loss).backward()
    assert relative(output.logits, golden.tensors["logits"]) <= 1e-9
    assert relative(cross_entropy, golden.tensors["ce"]) <= 1e-9
    assert relative(output.balance_loss, golden.tensors["reg"]) <= FLOAT32_UNIT
    assert relative(output.balance_B.mean(), golden.tensors["reg"].double()) <= FLOAT32_UNIT
    difference, where = worst(official_gradients(model), golden.below("grad."))
    assert difference <= 1e-9, where


def test_eight_steps_of_adamw(golden: Golden) -> None:
    model = load_official(golden.config, golden.below("weight."))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for window_BT, (cross_entropy_then, balance_then, norm_then) in zip(golden.tensors["tokens"], golden.tensors["trace"], strict=True):
        optimizer.zero_grad()
        output = model(window_BT[:, :-1])
        cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), window_BT[:, 1:].flatten())
        (cross_entropy + output.balance_loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        assert relative(cross_entropy, cross_entropy_then) <= 1e-7
        assert relative(output.balance_loss, balance_then) <= FLOAT32_UNIT
        assert relative(norm, norm_then) <= 1e-7
    difference, where = worst(to_official(model)[1], golden.below("final."))
    assert difference <= 1e-7, where
