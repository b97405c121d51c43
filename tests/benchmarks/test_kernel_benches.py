"""What `bench kernels` compares does equal work, and `bench roofline` counts it as a hand does."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from benchmarks import peer as peer_bench
from benchmarks.kernels import Shape, ffn_forms, linear_forms, report
from benchmarks.roofline import DEVICES, PEER, Memory, Work, kernels, main, peer, readers, stream, whole
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


def test_the_forms_of_peer_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for title, forms in peer_bench.forms(Memory(8, 16, 3), 5, torch.float32, "cpu").items():
        ours, gathered = (cast(Any, form)() for form in forms.values())
        pairs = [(ours, gathered)] if title == "forward" else list(zip(ours, gathered, strict=True))
        assert len(pairs) == (1 if title == "forward" else 4)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    assert peer_bench.main(["--tokens", "4", "--width", "8", "--side", "3", "--picks", "2", "--rounds", "1"]) == 0
    assert "4 tokens, width 8, 9 experts, 2 a token" in capsys.readouterr().out


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
    assert Work(989.4e12, 0, float32_flops=67e12).seconds(DEVICES["H100"]) == 2.0
    assert main(["--sizes", "44M"]) == 0
    said = capsys.readouterr().out
    assert "ffn as one" in said and "PEER   d down" in said


def test_bytes_of_stream_and_readers_by_hand() -> None:
    entries, config = 65536 * 1024, PAPER["244M"]
    work = {name: counted.bytes / entries for name, counted in stream(config, 65536).items()}
    # Forward: read, addition with read, addition; backward the same; and every one of them by itself.
    assert work == {"by operators": 184, "in one pass": (8 + 14 + 10) + (16 + 18 + 6), "over visits": 2 * 14 + 2 * 18}
    products = readers(config, 65536)
    assert products["logits fp32"].float32_flops == products["logits"].flops == 6 * entries * (2 * 40 + 387)
    assert products["logits"].flops == products["logits joined"].flops and products["query, key"].flops == 6 * entries * 1024
    # One product in place of two reads n twice less and writes one dn less, whatever its width.
    for apart, joined in (("logits", "logits joined"), ("query, key", "q, k joined")):
        assert products[apart].bytes - products[joined].bytes == 3 * 2 * entries


def test_floors_of_peer_by_hand() -> None:
    """A token reads 128 rows of two tables of 1,024 bfloat16: 0.5 MiB; an expert's four FLOPs a column are two of each table."""
    work = peer(PEER, 1)
    assert work["forward"].flops == 4 * 128 * 1024
    assert work["forward"].bytes == 2**19 + 2 * 2048 + 128 * (8 + 4 + 4)
    assert work["d up"].bytes == 2**18 + 128 * (8 + 4) + 2**20 * 1024 * 4
