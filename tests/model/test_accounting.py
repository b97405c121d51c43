"""Counts of the paper's tables (arXiv 2405.16039 tables 1-3, Fig. 4), to the unit; MACs to the printed decimals."""

from __future__ import annotations

import pytest
import torch
from tiny_models import KINDS, tiny_config

from model.accounting import kv_cache_bytes, macs, macs_per_token, parameters, stored_parameters, train_flops_per_token
from model.config import ModelConfig
from model.moeut import MoEUT
from model.paper import DENSE_PEERS, GROUPS, PAPER, SIGMA_MOE

WINDOW = 1024
SIZES = ["44M", "126M", "244M", "319M", "728M", "1040M"]


@pytest.mark.parametrize(
    ("config", "stored", "layers"),
    [
        (PAPER["44M"], 44_345_792, 37_744_968),
        (PAPER["126M"], 125_669_696, 113_372_160),
        (PAPER["244M"], 243_326_784, 226_932_736),
        (PAPER["319M"], 318_107_456, 301_713_408),
        (PAPER["728M"], 727_424_320, 706_933_760),
        (PAPER["1040M"], 1_040_319_296, 1_015_732_224),
        (SIGMA_MOE["44M"], 44_129_080, 37_528_256),
        (SIGMA_MOE["126M"], 126_069_056, 113_771_520),
        (SIGMA_MOE["244M"], 243_844_928, 227_450_880),
        (SIGMA_MOE["319M"], 319_661_888, 303_267_840),
        (SIGMA_MOE["728M"], 731_228_480, 710_737_920),
    ],
)
def test_parameters_of_the_paper(config: ModelConfig, stored: int, layers: int) -> None:
    count = parameters(config)
    assert (count.stored, count.layers) == (stored, layers)


def test_parameters_of_the_dense_peers() -> None:
    counts = [44_544_264, 125_654_336, 243_568_700, 319_293_584, 728_694_080, 1_044_300_608]
    assert [stored_parameters(DENSE_PEERS[size]) for size in SIZES] == counts


def test_parameters_of_the_group_ablation() -> None:
    counts = {1: 243_589_952, 2: 243_326_784, 3: 243_844_928, 6: 243_844_928, 9: 243_844_928, 18: 243_844_928}
    assert {group: stored_parameters(config) for group, config in GROUPS.items()} == counts
    assert all(config.depth.n_layers == group and config.depth.n_visits == 18 for group, config in GROUPS.items())


def test_attention_share_of_the_layers() -> None:
    shares = []
    for size in SIZES:
        config = PAPER[size]
        feed_forward = config.feed_forward.n_experts * (256 * config.d_model + config.d_model)
        layer = parameters(config).layers / config.depth.n_layers
        shares.append(round(100 * (layer - feed_forward - 4 * config.d_model) / layer, 1))
    assert shares == [13.0, 11.6, 10.2, 11.6, 13.1, 12.2]


@pytest.mark.parametrize(
    "config", [*PAPER.values(), *DENSE_PEERS.values(), *SIGMA_MOE.values(), *map(lambda kind: tiny_config(**kind), KINDS.values())]
)
def test_the_count_is_that_of_a_built_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = MoEUT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(config).stored


def test_unrolled_and_active() -> None:
    shared, unshared = PAPER["244M"], GROUPS[18]
    assert parameters(unshared).unrolled == parameters(unshared).stored
    repeats = shared.depth.repeats
    assert parameters(shared).unrolled - parameters(shared).stored == (repeats - 1) * parameters(shared).layers
    everything = PAPER["244M"].model_copy(
        update={
            "feed_forward": shared.feed_forward.model_copy(update={"top_k": 387}),
            "attention": shared.attention.model_copy(update={"top_k": 10}),
        }
    )
    spared_rows = (shared.vocab_size - 1) * shared.d_model
    assert parameters(everything).active == parameters(everything).unrolled - spared_rows


@pytest.mark.parametrize(
    ("models", "printed"),
    [
        (PAPER, [46.203, 94.504, 162.338, 215.218, 494.461, 700.258]),
        (DENSE_PEERS, [52.544, 141.734, 271.111, 361.482, 821.412, 1159.641]),
        (SIGMA_MOE, [40.738, 80.136, 136.103, 181.471, 413.207]),
    ],
)
def test_published_macs(models: dict[str, ModelConfig], printed: list[float]) -> None:
    sizes = SIZES[: len(printed)]
    assert [round(macs(models[size], WINDOW, "published").body / 1e9, 3) for size in sizes] == printed


def test_published_macs_of_attention_and_of_training() -> None:
    attention = [24.420, 47.422, 77.725, 103.633, 230.834, 320.374]
    training = [0.296, 0.605, 1.039, 1.377, 3.165, 4.482]
    published = [macs(PAPER[size], WINDOW, "published") for size in SIZES]
    assert [round(count.attention / 1e9, 3) for count in published] == attention
    assert [round(count.body * 64 * 100_000 / 1e18, 3) for count in published] == training


def test_exact_macs_add_routers_of_every_head_and_weights() -> None:
    config = PAPER["244M"]
    published, exact = macs(config, WINDOW, "published"), macs(config, WINDOW)
    routers = 18 * 2 * (4 - 1) * 10 * 1024 * WINDOW
    weights = 18 * 16 * 128 * WINDOW
    assert exact.attention - published.attention == routers
    assert exact.feed_forward - published.feed_forward == weights
    assert exact.head == 1024 * 8000 * WINDOW
    assert macs_per_token(config, WINDOW) == exact.total / WINDOW


def test_cache_bytes_count_visits() -> None:
    assert kv_cache_bytes(PAPER["244M"], 1024, 2) == 18 * 2 * 4 * 128 * 1024 * 2


def test_operations_of_training_leave_out_backward_passes_that_are_not_made() -> None:
    """Of 8 visits of two layers six are constant: two operations a multiply-accumulate in place of six."""
    depth = {"group": 2, "repeats": 4}
    whole, cut = tiny_config(depth=depth), tiny_config(depth={**depth, "backprop_repeats": 1})
    cost = macs(whole, 11)
    assert train_flops_per_token(whole, 11) == pytest.approx(6 * cost.total / 11)
    assert train_flops_per_token(cut, 11) == pytest.approx((6 * cost.total - 4 * (cost.attention + cost.feed_forward) * 6 / 8) / 11)
