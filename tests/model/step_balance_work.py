"""What ranks run for test_step_balance.py: a step of a whole model over their share of a batch, cut into micro-batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tiny_models import KINDS, tiny_config, tiny_tokens
from torch import Tensor

from distributed.exchange import TokenExchange
from distributed.step_balance import StepBalance
from distributed.step_moves import StepMoves
from distributed.topology import Topology, init_topology
from model.exchange import Exchange
from model.moeut import MoEUT

ALONE = Topology(0, 1, 0, 1, torch.device("cpu"), "none", None, None, None)


def run_share(share: tuple[int, ...], micro_batches: int, expert_parallel: int, kind: str, recompute: str) -> dict[str, Any]:
    """This rank's share[rank] sequences."""
    topology = init_topology(expert_parallel, device="cpu", timeout_seconds=60, use_deepspeed=False)
    tokens_BT = tiny_tokens(sum(share)).split(list(share))[topology.rank]
    exchange = TokenExchange(topology) if expert_parallel > 1 else None
    return _step(topology, exchange, tokens_BT, sum(share), micro_batches, kind, recompute)


def run_whole(n_sequences: int, kind: str) -> dict[str, Any]:
    """The same in one process and one micro-batch."""
    return _step(ALONE, None, tiny_tokens(n_sequences), n_sequences, 1, kind, "none")


def _step(
    topology: Topology, exchange: Exchange | None, tokens_BT: Tensor, global_batch: int, micro_batches: int, kind: str, recompute: Any
) -> dict[str, Any]:
    """Gradients, logits, this rank's part of the balance loss, buffers after the step, and the first expert of every bank here."""
    model = MoEUT(tiny_config(**KINDS[kind]), exchange, None, recompute).double().init_parameters(1).train()
    balance, moves = StepBalance(model, topology), StepMoves(model, topology)
    parts = tokens_BT.tensor_split(micro_batches)
    if balance.looks_ahead(micro_batches):
        with torch.no_grad():
            balance.measure(model(part_BT, read_out=False) for part_BT in parts)
    logits, total = [], 0.0
    for part_BT in parts:
        output = model(part_BT, records=balance.next_records(), step_means=balance.means)
        cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), part_BT.roll(-1, 1).flatten(), reduction="sum")
        share = output.balance_B.sum() / global_batch
        (cross_entropy / (global_batch * tokens_BT.shape[1]) + share).backward()
        moves.observe(output)
        logits.append(output.logits.detach())
        total += share.item()
    moves.finish(skipped=False)
    return {
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "logits": torch.cat(logits),
        "balance": total,
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "first": {name: model.boxes()[name].offset[0] for name in model.partitioned_parameters()},
    }
