"""What ranks run for test_layouts.py: train a MoEUT with 155 experts, or one with tables, on their share of a batch, recording or
replaying choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from engine_work import state, train_config
from torch import Tensor

from distributed.batching import micro_batches
from distributed.engine import build_engine
from distributed.exchange import TokenExchange
from distributed.replay import ChoiceReader, ChoiceWriter, Replay
from distributed.table_exchange import ColumnExchange
from distributed.topology import Topology, init_topology
from distributed.weight_exchange import WeightExchange
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.depth_config import DepthConfig
from model.exchange import Exchange
from model.moe_config import SigmaMoEConfig
from model.moeut import MoEUT
from model.product_key_config import PeerConfig, PKMConfig

GLOBAL_BATCH, LENGTH, VOCABULARY = 12, 8, 50

ATTENTION = SwitchHeadConfig(n_heads=2, d_head=8, n_experts=3, top_k=2)
CONFIGS = {
    "experts": ModelConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        depth=DepthConfig(group=1, repeats=2),
        attention=ATTENTION,
        feed_forward=SigmaMoEConfig(n_experts=155, d_expert=8, top_k=12),
    ),
    "tables": ModelConfig(
        vocab_size=VOCABULARY,
        d_model=18,  # 4, 5, 4 and 5 columns over four ranks
        depth=DepthConfig(group=2, repeats=2),
        attention=ATTENTION,
        feed_forward=PeerConfig(n_keys=6, heads=2, top_k=4, d_key=8),
        feed_forward_at={1: PKMConfig(n_keys=6, heads=2, top_k=4, d_key=8)},
    ),
}


def tokens(ids: list[int], step: int) -> Tensor:
    """Windows [B, T+1] of samples `ids`, drawn per sample."""
    rows = [torch.randint(VOCABULARY, (LENGTH + 1,), generator=torch.Generator().manual_seed(1000 * step + sample)) for sample in ids]
    return torch.stack(rows) if rows else torch.empty(0, LENGTH + 1, dtype=torch.int64)


def share_of_loss(model: Any, tokens_BT: Tensor, records: Any) -> tuple[Tensor, Any]:
    """This micro-batch's part of the global loss, and the choices it took."""
    output = model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:], records=records)
    return output.cross_entropy / (GLOBAL_BATCH * LENGTH) + output.balance_B.sum() / GLOBAL_BATCH, output.records


def train(
    choices: str,
    record: bool,
    steps: int,
    accumulate: int,
    expert_parallel: int = 1,
    table_parallel: int = 1,
    move: str = "tokens",
    kind: str = "experts",
    **settings: Any,
) -> dict[str, Any]:
    """Losses and gradient norms of `steps` steps and this rank's state; choices go to or come from folder `choices`.

    A step has `accumulate` micro-batches, and the exchange as many parts.
    """
    topology = init_topology(expert_parallel, table_parallel=table_parallel, device="cpu", timeout_seconds=60)
    model = build(kind, topology, move, accumulate)
    engine = build_engine(model, train_config(**settings), topology)
    folder = Path(choices)
    replay: Replay = ChoiceWriter(folder, topology.rank, topology.world) if record else ChoiceReader(folder, topology.device)
    micro = -(-GLOBAL_BATCH // topology.world // accumulate)
    losses, norms = [], []
    for step in range(steps):
        total = 0.0
        batches = micro_batches(list(range(GLOBAL_BATCH)), topology.world, topology.rank, micro)
        for number, ids in enumerate(batches):
            records = replay.records(step, ids, CONFIGS[kind].depth.made())
            loss, made = share_of_loss(engine.module, tokens(ids, step), records)
            replay.keep(step, ids, made)
            engine.backward(loss, last=number == len(batches) - 1)
            total += float(loss.detach())
        losses.append(total)
        norms.append(engine.step(settings["lr"]).grad_norm)
    return {"losses": losses, "norms": norms, "state": state(engine), "boxes": model.boxes()}


def build(kind: str, topology: Topology, move: str = "tokens", parts: int = 1) -> MoEUT:
    """The model in its layout. Where tables are cut, attention's experts may be partitioned over another number of ranks."""
    exchange = _exchange(move, topology, parts)
    tables = ColumnExchange(topology.tables, topology.device) if topology.tables.size > 1 else None
    model = MoEUT(CONFIGS[kind], exchange, exchange if kind == "tables" else None, "visit" if tables else "none", tables)
    return model.init_parameters(1)


def _exchange(move: str, topology: Topology, parts: int) -> Exchange | None:
    if topology.expert_parallel == 1:
        return None
    return WeightExchange(topology) if move == "weights" else TokenExchange(topology, parts)
