"""What `bench kernels` compares does equal work, and `bench roofline` counts it as a hand does."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from benchmarks.kernels import Shape, ffn_forms, linear_forms, report
from benchmarks.roofline import DEVICES, Work, kernels, main, whole
from model.config import SwitchHeadConfig
from model.paper import PAPER


def test_the_forms_of_the_expert_layer_give_the_same_gradients() -> None:
    forms = ffn_forms(Shape(16, 8, 5, 2), 40, torch.float32, "cpu")
    ours, grouped = (cast(Any, forms[name])() for name in ("ours", "grouped_mm"))
    assert len(ours) == 4 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, grouped, strict=True))


def test_the_dense_layers_have_the_same_products() -> None:
    """Elements of the gradient of the dense weights = products a token / 2: routes a token x both widths."""
    _, up, down = cast(Any, ffn_forms(Shape(16, 8, 5, 2), 4, torch.float32, "cpu")["dense"])()
    assert up.numel() == down.numel() == 2 * 16 * 8
    config = SwitchHeadConfig(n_heads=3, d_head=4, n_experts=5, top_k=2)
    for output in (False, True):
        forms = linear_forms(config, 16, 4, torch.float32, "cpu", output)
        assert cast(Any, forms["dense"])()[1].numel() == 3 * 2 * 16 * 4 and len(cast(Any, forms["ours"])()) == 3


def test_ratios_are_medians_of_the_rounds_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("x", {"ours": [1.0, 6.0, 9.0], "dense": [1.0, 2.0, 9.0]}) == 1.0
    assert "ours   6000.00 ms (1.00)" in capsys.readouterr().out


def test_floors_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    routes = 65536 * 16
    product = 2 * routes * 1024 * 128
    work = kernels(PAPER["244M"], 65536)
    assert work["ffn up"].flops == work["ffn d x"].flops == product
    assert work["ffn up"].bytes == 2 * (routes * 1024 + 387 * 1024 * 128 + routes * 128) + 8 * routes
    assert whole(PAPER["244M"], 65536).flops == 6 * product + 2 * routes * 1024
    assert Work(312e12, 0).seconds(DEVICES["A100-80"]) == 1.0 and Work(1, 3.35e12).seconds(DEVICES["H100"]) == 1.0
    assert main(["--sizes", "44M"]) == 0
    assert "ffn as one" in capsys.readouterr().out
