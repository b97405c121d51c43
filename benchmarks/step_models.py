"""What `bench step` sets side by side: a model with its engine, and one whole training step of it.

Shape suffixes: B sequences, T tokens of each, N tokens of a micro-batch, H heads, K experts of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed.engine_plain import PlainEngine
from distributed.train_config import TrainConfig
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.moe_config import SigmaMoEConfig
from model.moeut import MoEUT, Recompute
from model.router import Record


@dataclass(frozen=True)
class Setting:
    """How a step is run: `batch` sequences of `seq_len` tokens, `micro_batch` at a time."""

    batch: int
    micro_batch: int
    seq_len: int
    dtype: torch.dtype
    device: str
    recompute: Recompute
    compiled: bool

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len


class Contestant:
    """A model with its initial weights and the plain engine: fp32 masters, AdamW, the norm of the gradient clipped at 0.25.

    `resident` is what it holds between steps, in bytes; None on a CPU.
    """

    def __init__(self, config: ModelConfig, setting: Setting) -> None:
        before = _allocated(setting)
        self.config, self.setting = config, setting
        self.train = TrainConfig(steps=1, global_batch=setting.batch, micro_batch=setting.micro_batch)
        model = MoEUT(config, recompute=setting.recompute).init_parameters(0).to(setting.device, setting.dtype)
        if setting.compiled:
            for layer in model.layers:
                layer.compile()
        self.engine = PlainEngine(model, self.train)
        self.resident = None if before is None else (_allocated(setting) or 0) - before

    def step(self, tokens_BT: Tensor, forced: list[Record] | None = None) -> None:
        """Forward and backward of every micro-batch, clip, update. `tokens_BT` has seq_len + 1 columns.

        Args:
            forced: choices that every micro-batch is to make, a record a visit; None: the routers choose.

        Raises:
            RuntimeError: the gradient was not finite, so that nothing was updated and no time is worth printing.
        """
        for micro_BT in tokens_BT.split(self.setting.micro_batch):
            records = None if forced is None else [dict(record) for record in forced]
            output = self.engine.module(micro_BT[:, :-1], targets_BT=micro_BT[:, 1:], records=records)
            loss = output.cross_entropy / self.setting.tokens + output.balance_B.sum() / self.setting.batch
            self.engine.backward(loss, last=True)
        report = self.engine.step(self.train.lr)
        if report.skipped:
            raise RuntimeError(f"the gradient's norm is {report.grad_norm}: this step was skipped")


def balanced_records(config: ModelConfig, n_tokens: int, device: str) -> list[Record]:
    """Choices by which all experts of a router have the same number of routes, to within one: token t takes (t K + j) mod E."""
    attention, feed_forward = config.attention, config.feed_forward
    record: Record = {}
    if isinstance(feed_forward, SigmaMoEConfig):
        record["feed_forward"] = _in_turn(n_tokens, feed_forward.top_k, feed_forward.n_experts, device)
    if isinstance(attention, SwitchHeadConfig):
        expert_NK = _in_turn(n_tokens, attention.top_k, attention.n_experts, device)
        for name in ("attention.value", "attention.output"):
            record[name] = expert_NK[:, None].expand(-1, attention.n_heads, -1).contiguous()
    return [record] * config.depth.n_visits


def _in_turn(n_tokens: int, top_k: int, n_experts: int, device: str) -> Tensor:
    return (torch.arange(n_tokens * top_k, device=device) % n_experts).view(n_tokens, top_k)


def _allocated(setting: Setting) -> int | None:
    return torch.cuda.memory_allocated() if setting.device == "cuda" else None
