"""`bench step` times whole steps that really train, with the choices it says, on a machine that has nothing but torch and pydantic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernel_times import kernel_times
from benchmarks.step import DENSE, FORCED, HEADER, REAL, _missed, model_flops
from benchmarks.step_models import Contestant, Setting, balanced_records
from benchmarks.tokens import zipf_tokens
from model.attention_config import DenseAttentionConfig, SwitchHeadConfig
from model.config import ModelConfig
from model.dense_config import DenseFeedForwardConfig
from model.depth_config import DepthConfig
from model.moe_config import SigmaMoEConfig

ROOT = Path(__file__).resolve().parents[2]
MOEUT = ModelConfig(
    vocab_size=50,
    d_model=16,
    depth=DepthConfig(group=2, repeats=2),
    attention=SwitchHeadConfig(n_heads=2, d_head=8, n_experts=3, top_k=2),
    feed_forward=SigmaMoEConfig(n_experts=7, d_expert=8, top_k=2),
)
PEER = ModelConfig(
    vocab_size=50,
    d_model=16,
    depth=DepthConfig(group=2, repeats=1),
    attention=DenseAttentionConfig(n_heads=2, d_head=8),
    feed_forward=DenseFeedForwardConfig(d_ff=32),
    norm="pre",
)
SETTING = Setting(batch=4, micro_batch=2, seq_len=8, dtype=torch.float32, device="cpu", recompute="none", compiled=False)
BARE = """
import sys

for name in ("deepspeed", "ray", "streaming", "numpy", "yaml", "rich", "tensorboard", "tokenizers"):
    sys.modules[name] = None  # as if it were not installed
from model.config import ModelConfig
from model.paper import DENSE_PEERS, PAPER
PAPER["tiny"], DENSE_PEERS["tiny"] = (ModelConfig.model_validate_json(text) for text in sys.argv[1:3])
from cluster.cli import main
raise SystemExit(main(["bench", "step", "--sizes", "tiny", "--rounds", "1", "--seq-len", "8"]))
"""


def test_a_machine_with_torch_and_pydantic_alone_runs_it() -> None:
    words = [sys.executable, "-P", "-c", BARE, MOEUT.model_dump_json(), PEER.model_dump_json()]
    done = subprocess.run(words, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [row[0] for row in rows] == [f"| tiny {name}" for name in (REAL, FORCED, DENSE)]
    assert all(len(row) == len(HEADER) and float(row[1]) > 0 for row in rows)


def test_a_step_trains_and_micro_batches_change_nothing() -> None:
    tokens_BT = zipf_tokens(4, 9, 50)
    whole, parts = (Contestant(MOEUT, Setting(4, micro, 8, torch.float64, "cpu", "none", False)) for micro in (4, 2))
    before = [parameter.clone() for parameter in parts.engine.module.parameters()]
    for model in (whole, parts):
        model.step(tokens_BT)
    after = list(parts.engine.module.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(whole.engine.module.parameters(), after, strict=True))


def test_forced_choices_are_obeyed_and_even() -> None:
    model, tokens_BT = Contestant(MOEUT, SETTING), zipf_tokens(2, 9, 50)
    records = balanced_records(MOEUT, 16, "cpu")
    output = model.engine.module(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:], records=[dict(record) for record in records])
    assert all(int(load_E.max() - load_E.min()) <= 1 and int(load_E.sum()) == 32 for load_E in output.loads)
    for record in records:
        load_E = record["attention.value"][:, 1].flatten().bincount(minlength=3)
        assert int(load_E.max() - load_E.min()) <= 1
    assert balanced_records(PEER, 16, "cpu") == [{}, {}]


def test_a_step_that_updates_nothing_is_an_error() -> None:
    model = Contestant(PEER, SETTING)
    model.engine.module.head.bias.data[0] = torch.nan
    with pytest.raises(RuntimeError, match="skipped"):
        model.step(zipf_tokens(4, 9, 50))


def test_model_flops_by_hand() -> None:
    """Dense: queries, keys, values, output and two feed-forward matrices a layer, scores and their use, and the head."""
    per_token = 2 * (4 * 16 * 16 + 2 * 16 * 32 + 2 * 16 * 8) + 16 * 50
    assert model_flops(PEER, SETTING) == 6 * per_token * 4 * 8


def test_bars_are_taken_on_hopper_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    times, peaks = {REAL: [1.1, 1.2], DENSE: [1.0, 1.0]}, {REAL: 3, DENSE: 2}
    assert _missed("244M", times, peaks) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert len(_missed("244M", times, peaks)) == 2 and _missed("44M", times, peaks) == []
    assert _missed("244M", {REAL: [0.9], DENSE: [1.0]}, {REAL: 2, DENSE: 2}) == []


def test_a_profile_counts_calls_and_puts_the_longest_first() -> None:
    x = torch.randn(256, 256)

    def form() -> None:
        for _ in range(3):
            torch.mm(x, x)
        x.neg()

    found = kernel_times(form, "cpu")
    assert (found[0].name, found[0].calls) == ("aten::mm", 3)
    assert [kernel.seconds for kernel in found] == sorted((kernel.seconds for kernel in found), reverse=True)


def test_tokens_follow_zipfs_law() -> None:
    count_V = zipf_tokens(200, 100, 4).flatten().bincount(minlength=4)
    assert torch.allclose(count_V / count_V.sum(), torch.tensor([12.0, 6.0, 4.0, 3.0]) / 25, atol=0.02)
