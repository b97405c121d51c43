"""Starting values: their distributions by parameter, and that they depend on nothing but seed and name."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import KINDS, tiny_config
from torch import Tensor

from model.config import ModelConfig
from model.exchange import LocalExchange
from model.initialise import Constant
from model.moeut import MoEUT

LARGE = {
    "vocab_size": 500,
    "d_model": 96,
    "depth": {"group": 2, "repeats": 4},
    "attention": {"kind": "switchhead", "n_heads": 3, "d_head": 40, "n_experts": 5},
    "feed_forward": {"kind": "sigma_moe", "n_experts": 60, "d_expert": 32, "top_k": 4},
}


def _large(**changes: object) -> dict[str, Tensor]:
    return MoEUT(ModelConfig.model_validate({**LARGE, **changes})).init_parameters(3).state_dict()


@pytest.mark.parametrize(("norm", "s"), [("peri", math.sqrt(2 / 8)), ("pre", math.sqrt(2 / 8)), ("post", 1.0)])
def test_standard_deviations(norm: str, s: float) -> None:
    """s = sqrt(2 / unrolled depth), 1 for post-norm; `down` counts the width of all experts, `output` that of all heads."""
    expected = {
        "feed_forward.up.weight": s / 96**0.5,
        "feed_forward.router.weight": s / 96**0.5,
        "feed_forward.down.weight": s / (60 * 32) ** 0.5,
        "attention.query.weight": s / 96**0.5,
        "attention.key.weight": s / 96**0.5,
        "attention.value.weight": s / 96**0.5,
        "attention.value_router.weight": s / 96**0.5,
        "attention.output_router.weight": s / 96**0.5,
        "attention.output.weight": s / (3 * 40) ** 0.5,
    }
    values = _large(norm=norm)
    for name, std in expected.items():
        for layer in range(2):
            tensor = values[f"layers.{layer}.{name}"]
            noise = 5 / math.sqrt(2 * tensor.numel())
            assert tensor.std().item() == pytest.approx(std, rel=noise), name
            assert abs(tensor.mean().item()) <= 5 * std / math.sqrt(tensor.numel()), name
    assert values["embedding.weight"].std().item() == pytest.approx(96**-0.5, rel=0.02)
    for name in ("head.weight", "head.bias"):
        assert values[name].abs().max().item() <= 96**-0.5
    assert values["head.weight"].std().item() == pytest.approx(96**-0.5 / 3**0.5, rel=0.02)


def test_router_rows_start_with_equal_norms() -> None:
    norms = _large()["layers.0.feed_forward.router.weight"].norm(dim=1)
    assert (norms.max() / norms.min()).item() == pytest.approx(1.0, abs=1e-5)


def test_the_output_gate_starts_as_switchhead() -> None:
    values = _large(attention={**LARGE["attention"], "n_experts": 1})
    assert values["layers.0.attention.value.weight"].std().item() == pytest.approx(0.5 / 96**0.5, rel=0.03)
    assert values["layers.0.attention.output.weight"].std().item() == pytest.approx(0.5 / 120**0.5, rel=0.03)
    assert values["layers.0.attention.gate.weight"].std().item() == pytest.approx(0.5 / 96**0.5, rel=0.3)


def test_the_dense_baseline_is_truncated_to_an_exact_deviation() -> None:
    values = _large(norm="pre", attention={"kind": "dense", "n_heads": 3, "d_head": 40}, feed_forward={"kind": "dense", "d_ff": 200})
    s = math.sqrt(2 / 8)
    fan_in = {"attention.query": 96, "attention.value": 96, "attention.output": 120, "feed_forward.up": 96, "feed_forward.down": 200}
    for name, width in fan_in.items():
        tensor = values[f"layers.1.{name}.weight"]
        assert tensor.std().item() == pytest.approx(s / width**0.5, rel=1e-5), name
        assert tensor.abs().max() / tensor.std() < 2.4  # two deviations of the uncut normal, 0.88 of one after the cut
    assert (values["layers.0.feed_forward.up.bias"] == 0).all() and (values["layers.0.feed_forward.down.bias"] == 0).all()


@pytest.mark.parametrize("kind", list(KINDS))
def test_values_follow_from_seed_and_name(kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    first, again, other = (dict(MoEUT(config).init_parameters(seed).named_parameters()) for seed in (1, 1, 2))
    wide = dict(MoEUT(config).double().init_parameters(1).named_parameters())
    rules = MoEUT(config)._rules()
    for name, value in first.items():
        assert torch.equal(value, again[name]) and torch.equal(value.double(), wide[name])
        assert torch.equal(value, other[name]) == isinstance(rules[name], Constant), name
    kinds = [name for name in first if name.endswith("query.weight")]
    assert not torch.equal(first[kinds[0]], first[kinds[1]])


class Share(LocalExchange):
    """Owns what rank `rank` of three owns."""

    size = 3

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def owned(self, n_experts: int) -> range:
        return range(n_experts * self.rank // 3, n_experts * (self.rank + 1) // 3)


@pytest.mark.parametrize("n_experts", [7, 2, 1])
def test_values_do_not_depend_on_where_experts_live(n_experts: int) -> None:
    """Three ranks, uneven shares, some of them empty or the whole bank; boxes say which rows a rank holds."""
    config = tiny_config(feed_forward={"kind": "sigma_moe", "n_experts": n_experts, "d_expert": 16, "top_k": 1})
    whole = MoEUT(config).init_parameters(5)
    assert whole.partitioned_parameters() == {}
    banks = {f"layers.{layer}.{bank}.weight" for layer in (0, 1) for bank in ("feed_forward.up", "feed_forward.down")}
    attention_banks = {f"layers.{layer}.attention.{bank}.weight" for layer in (0, 1) for bank in ("value", "output")}
    rows = dict.fromkeys(banks | attention_banks, 0)
    for rank in range(3):
        part = MoEUT(config, Share(rank), Share(rank)).init_parameters(5)
        assert part.partitioned_parameters().keys() == banks | attention_banks
        assert MoEUT(config, Share(rank)).partitioned_parameters().keys() == banks
        boxes = part.boxes()
        for name, parameter in part.named_parameters():
            box = boxes[name]
            assert box.shape == parameter.shape and box.global_shape == whole.get_parameter(name).shape
            start = box.offset[0]
            assert torch.equal(parameter, whole.get_parameter(name)[start : start + box.shape[0]]), name
            if name in rows:
                assert start == rows[name]
                rows[name] += box.shape[0]
    assert all(rows[name] == whole.get_parameter(name).shape[0] for name in rows)
