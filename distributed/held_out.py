"""Held-out loss: exact over every window, whatever the batch size and the number of ranks.

Nats are summed in fp64 token by token and divided once by the number of tokens. Windows shorter than the rest (ragged
tails) are padded on the right, which a causal model cannot see, and the padding is not scored.

Shape suffixes: B windows of a batch, T positions, V vocabulary, N = B*T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distributed.batching import segments_of
from distributed.expert_use import ExpertUse
from distributed.reduction import sum_over_ranks
from distributed.topology import Topology

_NOT_SCORED = -100


class WindowReader(Protocol):
    """What evaluation needs of a set of windows: `data_pipeline.windows.Windows` has it."""

    @property
    def ids(self) -> range:
        """Numbers of the windows."""
        ...

    def read_ragged(self, ids: Sequence[int]) -> list[np.ndarray]:
        """Token ids of each window, int64, 2 to T+1 long."""
        ...


@dataclass(frozen=True)
class Scoring:
    """How windows are scored.

    Attributes:
        batch: windows a call; changes memory and speed, not the result.
        max_windows: only the first so many; None: all.
        end_of_document: given for a model trained with document masks: the token that ends a document.
        repeats: how many times the model goes through its group of layers; None: as configured.
        use: counts what this rank's scored tokens choose.
    """

    batch: int
    max_windows: int | None = None
    end_of_document: int | None = None
    repeats: int | None = None
    use: ExpertUse | None = None


@torch.no_grad()
def held_out_loss(
    model: nn.Module, windows: WindowReader, scoring: Scoring, device: torch.device, topology: Topology | None = None
) -> dict[str, Any]:
    """Mean negative log-likelihood a token over `windows`.

    Windows are dealt over the ranks in turn. Under expert parallelism every rank calls the model equally often, with empty
    batches where it has no window left, because each call is a collective. The model is left in the mode it was found in.

    Args:
        model: called on int64 [B, T], answers with `logits` [B, T, V].
        device: where the model is.
        topology: ranks that share the work; all of them must call this. None: this process alone.

    Returns:
        {"nats": mean a token, "total_nats": sum, "tokens": scored, "windows": scored}, equal on all ranks.
    """
    chosen = windows.ids[: scoring.max_windows]
    rank, world = (topology.rank, topology.world) if topology else (0, 1)
    mine = chosen[rank::world]
    calls = math.ceil(math.ceil(len(chosen) / world) / scoring.batch)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    try:
        for call in range(calls):
            ids = mine[call * scoring.batch : (call + 1) * scoring.batch]
            if ids or (topology is not None and topology.forward_meets):
                rows = windows.read_ragged(ids) if ids else []
                total += _score(model, rows, scoring, device)
    finally:
        model.train(was_training)
    if topology is not None:
        total = sum_over_ranks({"total": total}, topology, "held_out")["total"]
    nats, tokens = total.tolist()
    return {"nats": nats / tokens if tokens else math.nan, "total_nats": nats, "tokens": int(tokens), "windows": len(chosen)}


def _score(model: nn.Module, rows: list[np.ndarray], scoring: Scoring, device: torch.device) -> Tensor:
    """[2]: summed nats and scored tokens of one batch, fp64."""
    inputs_BT, targets_BT = (tokens_BT.to(device) for tokens_BT in pad(rows))
    segments_BT = segments_of(inputs_BT, scoring.end_of_document) if scoring.end_of_document is not None else None
    output = model(inputs_BT, segments_BT=segments_BT, repeats=scoring.repeats)
    logits_NV = output.logits.flatten(0, 1)
    wide_NV = logits_NV.float() if logits_NV.dtype in (torch.bfloat16, torch.float16) else logits_NV
    nats_N = F.cross_entropy(wide_NV, targets_BT.flatten(), reduction="none", ignore_index=_NOT_SCORED)
    scored_BT = targets_BT != _NOT_SCORED
    if scoring.use is not None:
        scoring.use.add(output.records, scored_BT.flatten())
    return torch.stack((nats_N.double().sum(), scored_BT.sum().double()))


def pad(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [B, T], of windows of unequal lengths; [0, 1] for no window."""
    width = max((len(row) - 1 for row in rows), default=1)
    inputs_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    targets_BT = torch.full((len(rows), width), _NOT_SCORED, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens = torch.from_numpy(np.asarray(row, dtype=np.int64))
        inputs_BT[number, : len(row) - 1] = tokens[:-1]
        targets_BT[number, : len(row) - 1] = tokens[1:]
    return inputs_BT, targets_BT
