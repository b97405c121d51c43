"""What `bench kernels` compares does equal work, and `bench roofline` counts it as a hand does."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from benchmarks import kernels as bench
from benchmarks import peer as peer_bench
from benchmarks.attention_forms import attention_forms
from benchmarks.comparison import Comparison, compare, relative_error, show
from benchmarks.floors import DEVICES, NAMES, Work
from benchmarks.kernel_forms import Shape, draw_layer, layer_forms, loss_forms
from benchmarks.kernel_operations import operations
from benchmarks.kernel_shapes import SIZES
from benchmarks.map_forms import MapShape, map_forms, rows_of_routes
from benchmarks.peer_floors import PEER, Memory, peer
from benchmarks.roofline import kernels, main, whole
from benchmarks.stream_floors import readers, stream
from benchmarks.stream_forms import logits_forms, stream_forms
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.depth_config import DepthConfig
from model.moe_config import SigmaMoEConfig
from model.paper import DENSE_PEERS, PAPER

MAPS = {"value": MapShape(16, 4, 3, 5, 2, 1, 3), "output": MapShape(4, 16, 3, 5, 2, 3, 1), "ff_up": MapShape(16, 8, 1, 5, 2, 1, 2)}


def gradients(form: object) -> list[torch.Tensor]:
    return cast(Any, form)()


def test_the_forms_of_the_expert_layer_give_the_same_gradients() -> None:
    forms = layer_forms(draw_layer(Shape(16, 8, 5, 2), 40, torch.float32, "cpu"))
    ours = gradients(forms["ours"])
    assert len(ours) == 4 and relative_error(gradients(forms["grouped_mm"]), ours) < 1e-5


@pytest.mark.parametrize("name", MAPS)
def test_the_forms_of_a_map_give_the_same_gradients(name: str) -> None:
    forms = map_forms(MAPS[name], 12, torch.float32, "cpu")
    ours = gradients(forms["ours"])
    assert len(ours) == (2 if name == "ff_up" else 3) and relative_error(gradients(forms["grouped_mm"]), ours) < 1e-5


def test_rows_of_routes_ascend_and_are_even() -> None:
    assert rows_of_routes(2, 6, 3, "cpu").tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert rows_of_routes(2, 2, 1, "cpu").tolist() == [0, 0, 1, 1] and rows_of_routes(2, 2, 2, "cpu").tolist() == [0, 1, 2, 3]


def test_the_forms_of_the_loss_take_the_same_leaves() -> None:
    forms = loss_forms(8, 30, 12, torch.float32, "cpu")
    assert [[tuple(g.shape) for g in gradients(form)] for form in forms.values()] == [[(12, 8), (30, 8), (30,)]] * 2


def test_the_forms_of_stream_and_logits_take_the_same_leaves() -> None:
    config = PAPER["44M"]
    assert isinstance(config.attention, SwitchHeadConfig)
    for forms in (stream_forms, logits_forms):
        ours, theirs = (gradients(form) for form in forms(config, 6, torch.float32, "cpu").values())
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))  # on a CPU ours are torch's operators
    assert [len(w_ED) for w_ED in ours[1:]] == [32, 32, 155]


def test_whole_attention_is_beside_the_dense_peers() -> None:
    forms = attention_forms(PAPER["44M"], DENSE_PEERS["44M"], 8, torch.float32, "cpu")
    ours, dense = (gradients(form) for form in forms.values())
    assert [tuple(g.shape) for g in ours[:2]] == [(1, 8, 412)] * 2 and all(g.abs().sum() > 0 for g in (*ours, *dense))
    assert sum(g.numel() for g in dense[2:]) == 4 * 412 * 410


def test_the_dense_layers_have_the_same_products() -> None:
    """Elements of the gradient of the dense weights = products a token / 2: routes a token x both widths."""
    _, up, down = gradients(layer_forms(draw_layer(Shape(16, 8, 5, 2), 4, torch.float32, "cpu"))["dense"])
    assert up.numel() == down.numel() == 2 * 16 * 8
    for shape in MAPS.values():
        assert gradients(map_forms(shape, 4, torch.float32, "cpu")["dense"])[1].numel() == shape.taken * shape.d_in * shape.d_out


def test_the_forms_of_peer_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for title, forms in peer_bench.forms(Memory(8, 16, 3), 5, torch.float32, "cpu").items():
        ours, gathered = (cast(Any, form)() for form in forms.values())
        pairs = [(ours, gathered)] if title == "forward" else list(zip(ours, gathered, strict=True))
        assert len(pairs) == (1 if title == "forward" else 4)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    assert peer_bench.main(["--tokens", "4", "--width", "8", "--side", "3", "--picks", "2", "--rounds", "1"]) == 0
    assert "4 tokens, width 8, 9 experts, 2 a token" in capsys.readouterr().out


def test_shapes_are_those_published() -> None:
    assert SIZES["244M"].layer == Shape(1024, 128, 387, 16) and SIZES["244M"].maps["output"] == MapShape(128, 1024, 4, 10, 2, 4, 1)
    assert SIZES["d1024"].tokens == 16384 and SIZES["d1024"].maps["switch_v"] == MapShape(1024, 64, 1, 512, 32, 1, 32)
    assert SIZES["d768"].maps["switch_o"] == MapShape(64, 768, 1, 384, 24, 24, 1) and list(SIZES["d4096"].maps) == ["ff_up", "ff_down"]


def test_a_form_that_fails_is_named_with_its_reason_and_ours_may_not() -> None:
    def broken() -> object:
        raise ValueError("no | such kernel\nmore")

    one = torch.ones(2)
    compared = compare(
        {"ours": lambda: (one,), "dense": lambda: (), "rival": lambda: (2 * one,), "broken": broken}, 1, "cpu", {"absent": "why"}
    )
    rows = [line.split(" | ") for line in show("work", compared, None).splitlines()]
    assert [row[1] for row in rows] == ["ours", "dense", "rival", "absent", "broken"]
    assert [row[-1].strip(" |") for row in rows[2:]] == ["differs by 1.0e+00", "why", "ValueError: no / such kernel"]
    with pytest.raises(ValueError):
        compare({"ours": broken}, 1, "cpu")


def test_bars() -> None:
    assert bench._has_bars("d416", 2048, "bf16") and not bench._has_bars("44M", 2048, "bf16")
    compared = Comparison({"ours": [1.0, 6.0, 9.0], "dense": [1.0, 1.5, 9.0], "cvmm": [1.0, 12.0, 17.0]}, {}, {})
    assert compared.over("ours", "dense") == 1.0 and compared.over("ours", "ScatterMoE") is None
    assert bench._missed(compared, None) == []
    assert len(bench._missed(Comparison({"ours": [4.0], "dense": [1.0]}, {}, {}), None)) == 1
    assert len(bench._missed(Comparison({"ours": [4.0]}, {}, {}), None)) == 1


def test_bars_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert bench._has_bars("244M", 65536, "bf16") and not bench._has_bars("244M", 2048, "bf16")
    times = {"ours": [1.5], "dense": [1.0], "cvmm": [2.0], "cvmm_codex": [1.4], "ScatterMoE": [1.4]}
    assert len(bench._missed(Comparison(times, {}, {}), 1.0)) == 5
    times = {"ours": [1.4], "dense": [1.0], "cvmm": [3.0]}
    assert bench._missed(Comparison(times, {}, {}), 1.0) == [] and len(bench._missed(Comparison(times, {}, {}), None)) == 1


def test_every_launch_has_a_floor_and_runs() -> None:
    config = ModelConfig(
        vocab_size=9,
        d_model=16,
        depth=DepthConfig(),
        attention=SwitchHeadConfig(n_heads=2, d_head=16, n_experts=2, top_k=1),
        feed_forward=SigmaMoEConfig(n_experts=2, d_expert=16, top_k=1),
    )
    found = operations(config, 2, torch.float32, "cpu")
    assert set(found) == set(kernels(config, 2))
    for form in found.values():
        form()


def test_floors_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    routes = 65536 * 16
    product = 2 * routes * 1024 * 128
    work = kernels(PAPER["244M"], 65536)
    assert work["ffn up"].flops == work["ffn d x"].flops == product
    assert work["ffn up"].bytes == 2 * (routes * 1024 + 387 * 1024 * 128 + routes * 128) + 8 * routes
    assert work["attention router"].bytes == 65536 * 4 * (4 * 10 + 12 * 2)
    assert whole(PAPER["244M"], 65536).flops == 6 * product + 2 * routes * 1024
    assert Work(312e12, 0).seconds(DEVICES["A100-80"]) == 1.0 and Work(1, 3.35e12).seconds(DEVICES["H100"]) == 1.0
    assert Work(989.4e12, 0, float32_flops=67e12).seconds(DEVICES["H100"]) == 2.0
    assert set(NAMES.values()) == set(DEVICES)
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
