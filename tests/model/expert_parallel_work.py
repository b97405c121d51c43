"""What ranks run for test_expert_parallel.py: one forward and backward of a whole model over their share of a batch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from tiny_models import KINDS, tiny_config, tiny_tokens
from torch import Tensor

from distributed.collectives import recorded_order
from distributed.exchange import TokenExchange
from distributed.topology import init_topology
from distributed.weight_exchange import WeightExchange
from model.exchange import Exchange
from model.moeut import MoEUT


def run_share(
    share: tuple[int, ...], partition_attention: bool, recompute: str, kind: str, move: str
) -> tuple[dict[str, Tensor], dict[str, int], list[str]]:
    """Gradients of this rank's share[rank] sequences, the first expert of every bank here, and the collectives in order."""
    topology = init_topology(len(share), device="cpu", timeout_seconds=60, use_deepspeed=False)
    exchange = WeightExchange(topology) if move == "weights" else TokenExchange(topology)
    model = _model(exchange, exchange if partition_attention else None, recompute, kind)
    tokens_BT = tiny_tokens(sum(share)).split(list(share))[topology.rank]
    with recorded_order() as order:
        _loss(model, tokens_BT, sum(share)).backward()
    first = {name: model.boxes()[name].offset[0] for name in model.partitioned_parameters()}
    return _gradients(model), first, order


def run_whole(n_sequences: int, kind: str) -> dict[str, Tensor]:
    """The same in one process."""
    model = _model(None, None, "none", kind)
    _loss(model, tiny_tokens(n_sequences), n_sequences).backward()
    return _gradients(model)


def _model(exchange: Exchange | None, attention_exchange: Exchange | None, recompute: Any, kind: str) -> MoEUT:
    return MoEUT(tiny_config(**KINDS[kind]), exchange, attention_exchange, recompute).double().init_parameters(1)


def _loss(model: MoEUT, tokens_BT: Tensor, n_sequences: int) -> Tensor:
    """This rank's part of the global loss."""
    output = model(tokens_BT)
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), tokens_BT.roll(-1, 1).flatten(), reduction="sum")
    return cross_entropy / (n_sequences * tokens_BT.shape[1]) + (output.balance_B + output.ponder_B).sum() / n_sequences


def _gradients(model: MoEUT) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
