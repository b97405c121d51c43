"""Buffers that move once a step (`model.moved`), by exact sums over micro-batches and ranks: one collective where there are any."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed.reduction import sum_over_ranks
from distributed.topology import Topology
from model.moeut import ModelOutput, MoEUT
from model.moved import Moved


class StepMoves:
    """One rank's part. All ranks call `finish` together."""

    def __init__(self, model: MoEUT, topology: Topology) -> None:
        depth = model.config.depth
        self._layers, self._topology = depth.schedule(depth.most_repeats), topology
        blocks = enumerate(model.layers)
        self._moved = [
            (layer, module) for layer, block in blocks for module in block.modules() if isinstance(module, Moved) and module.moves
        ]
        self._sums: dict[str, Tensor] = {}

    def observe(self, output: ModelOutput) -> None:
        """Add what the forward over one micro-batch left in its records."""
        for number, (layer, module) in enumerate(self._moved):
            for at, record in zip(self._layers, output.records, strict=True):
                if at == layer and record:  # empty for a visit that this step does not make
                    told = module.told_by(record).to(torch.float64)
                    self._sums[str(number)] = self._sums[str(number)] + told if str(number) in self._sums else told

    def finish(self, skipped: bool) -> None:
        """The step is over: buffers move, unless it was `skipped`."""
        if not self._moved:
            return
        totals = sum_over_ranks(self._sums, self._topology, "step.moves")
        self._sums = {}
        if not skipped:
            for number, (_, module) in enumerate(self._moved):
                module.move(totals[str(number)])
