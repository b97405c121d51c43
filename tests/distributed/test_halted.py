"""Figures of halting from what forwards said of themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distributed.clock import PARTS
from distributed.figures import Interval, interval_figures
from distributed.halted import HaltingCounter, halting_figures
from model.accounting import executed_macs, macs
from model.config import ModelConfig
from model.moeut import MoEUT

VALUES = {
    "vocab_size": 61,
    "d_model": 36,
    "depth": {"group": 2, "repeats": 3},
    "attention": {"kind": "dense", "n_heads": 2, "d_head": 18},
    "feed_forward": {"kind": "sigma_moe", "n_experts": 7, "d_expert": 16, "top_k": 3},
}


def test_micro_batches_add_up() -> None:
    """Two unequal micro-batches give the figures of their sequences together; a second interval starts anew."""
    config = ModelConfig.model_validate({**VALUES, "halting": {"kind": "act", "epsilon": 0.27}})
    model, counter = MoEUT(config).init_parameters(1).double(), HaltingCounter(config, 11, torch.device("cpu"))
    tokens_BT = torch.randint(61, (5, 11), generator=torch.Generator().manual_seed(0))
    for part_BT in tokens_BT.split([2, 3]):
        counter.add(model(part_BT), part_BT.numel())
    whole, figures = model(tokens_BT), halting_figures(counter.take(), 11)
    computed = whole.computed[::2]
    assert figures["mean_passes"] == pytest.approx(sum(visit.queries for visit in computed) / 55)
    executed = executed_macs(config, whole.computed, 11, 5).total
    assert figures["saved_share"] == pytest.approx(1 - executed / (5 * macs(config, 11).total)) and 0 < figures["saved_share"] < 1
    assert figures["loss"] == pytest.approx(whole.ponder_B.mean().item(), rel=1e-12)
    assert halting_figures(counter.take(), 11) == {}


def test_operations_of_an_interval_leave_out_what_halting_saved() -> None:
    one_W = torch.ones(1)
    whole = Interval(
        steps=1,
        skipped=0,
        damaged=0,
        tokens=8,
        repeats=3,
        flops=6e6,
        loss=1.0,
        balance=0.0,
        grad_norms=[1.0],
        lr=0.1,
        seconds_WP=torch.ones(1, len(PARTS)),
        tokens_W=one_W,
        host_bytes_W=one_W,
        device_bytes_W=one_W,
        peak_flops_W=one_W,
        loads_VE=torch.zeros(0, 0),
        routes_WV=torch.zeros(1, 0),
        halting={},
        use={"visits": [], "layers": []},
    )
    assert interval_figures(whole, [])["flops"] == 6e6
    assert interval_figures(replace(whole, halting={"saved_share": 0.25}), [])["flops"] == 4.5e6


def test_no_figures_where_no_token_can_halt() -> None:
    config = ModelConfig.model_validate(VALUES)
    counter = HaltingCounter(config, 11, torch.device("cpu"))
    counter.add(MoEUT(config).init_parameters(1)(torch.zeros(2, 11, dtype=torch.int64)), 22)
    assert halting_figures(counter.take(), 11) == {}
