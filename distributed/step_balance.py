"""Regularisers over a whole step: what all micro-batches of all ranks must know of each other.

A regulariser of scope `step` is not linear in the step's mean statistic, so no micro-batch can take its gradient before all were seen. So
a step of several micro-batches or ranks begins with a forward over all of them without gradients; its statistics are summed over
ranks, and each micro-batch then takes the tangent at the exact mean (`model.balance`). The second forward obeys the choices of the first,
unless tokens may halt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from distributed.reduction import sum_over_ranks
from distributed.topology import Topology
from model.balance import Key, Means
from model.config import ModelConfig
from model.moeut import ModelOutput, MoEUT
from model.router import Record


def looks_ahead(config: ModelConfig, micro_batches: int, world: int) -> bool:
    """Whether a step of so many micro-batches a rank must be measured before it is trained on."""
    return config.has_step_balance and (micro_batches > 1 or world > 1)


class StepBalance:
    """One rank's part. All ranks call `measure` together, where `looks_ahead`.

    Attributes:
        means: statistics of a token over the step, for its forwards; None where they need none.
    """

    def __init__(self, model: MoEUT, topology: Topology) -> None:
        self._topology = topology
        self._config = model.config
        # Who halts is decided anew, and with it whose choices there are.
        self._obeyed = model.config.halting.kind == "none"
        self.means: Means | None = None
        self._records: deque[list[Record]] = deque()

    def looks_ahead(self, micro_batches: int) -> bool:
        """Whether a step of so many micro-batches a rank must be measured before it is trained on."""
        return looks_ahead(self._config, micro_batches, self._topology.world)

    def measure(self, outputs: Iterable[ModelOutput]) -> None:
        """Sum the statistics of the first forwards over this rank's micro-batches and all ranks, and keep their choices."""
        sums: Means = {}
        n_sequences = torch.zeros((), dtype=torch.float64)  # counted, since damaged ones may be missing
        self._records.clear()  # of a step that was given up
        for output in outputs:
            sums = {key: sums[key] + own if sums else own for key, own in output.step_sums.items()}
            n_sequences += output.balance_B.shape[0]
            if self._obeyed:
                self._records.append([_choices(record) for record in output.records])
        figures = {_flat(key): own for key, own in sums.items()} | {"sequences": n_sequences}
        total = sum_over_ranks(figures, self._topology, "balance.statistics")
        self.means = {key: (total[_flat(key)] / total["sequences"].clamp_min(1)).to(own.device) for key, own in sums.items()}

    def next_records(self) -> list[Record] | None:
        """The choices of the first forward over the next micro-batch."""
        return self._records.popleft() if self._records else None


def _choices(record: Record) -> Record:
    """Without what an exchange learnt: a repeated dispatch takes its results late, as a recomputation should and a forward should not."""
    return {name: choice for name, choice in record.items() if isinstance(choice, Tensor)}


def _flat(key: Key) -> str:
    return f"{key[0]}.{key[1]}"
