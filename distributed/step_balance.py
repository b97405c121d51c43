"""Regularisers over a whole step: what all micro-batches of all ranks must know of each other.

A regulariser of scope `step` is not linear in the step's mean statistic, so no micro-batch can take its gradient before all were seen. So
a step of several micro-batches or ranks begins with a forward over all of them without gradients; its statistics are summed over
ranks, and each micro-batch then takes the tangent at the exact mean (`model.balance`). The second forward obeys the choices of the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from torch import Tensor

from distributed.reduction import sum_over_ranks
from distributed.topology import Topology
from model.balance import Key, Means
from model.moeut import ModelOutput, MoEUT
from model.router import Record


class StepBalance:
    """One rank's part. All ranks call `measure` together, where `looks_ahead`.

    Args:
        global_batch: sequences of a step over all ranks.

    Attributes:
        means: statistics of a token over the step, for its forwards; None where they need none.
    """

    def __init__(self, model: MoEUT, topology: Topology, global_batch: int) -> None:
        self._topology, self._global_batch = topology, global_batch
        self._has_terms = any(term.balance.scope == "step" for term in model.config.feed_forward.balance_terms().values())
        self.means: Means | None = None
        self._records: deque[list[Record]] = deque()

    def looks_ahead(self, micro_batches: int) -> bool:
        """Whether a step of so many micro-batches a rank must be measured before it is trained on."""
        return self._has_terms and (micro_batches > 1 or self._topology.world > 1)

    def measure(self, outputs: Iterable[ModelOutput]) -> None:
        """Sum the statistics of the first forwards over this rank's micro-batches and all ranks, and keep their choices."""
        sums: Means = {}
        self._records.clear()  # of a step that was given up
        for output in outputs:
            sums = {key: sums[key] + own if sums else own for key, own in output.step_sums.items()}
            self._records.append([_choices(record) for record in output.records])
        total = sum_over_ranks({_flat(key): own for key, own in sums.items()}, self._topology, "balance.statistics")
        self.means = {key: total[_flat(key)].to(own.device) / self._global_batch for key, own in sums.items()}

    def next_records(self) -> list[Record] | None:
        """The choices of the first forward over the next micro-batch."""
        return self._records.popleft() if self._records else None


def _choices(record: Record) -> Record:
    """Without what an exchange learnt: a repeated dispatch takes its results late, as a recomputation should and a forward should not."""
    return {name: choice for name, choice in record.items() if isinstance(choice, Tensor)}


def _flat(key: Key) -> str:
    return f"{key[0]}.{key[1]}"
