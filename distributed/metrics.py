"""What a run says of itself: figures stay on the device during steps and are reduced once a logging interval.

One collective (a fp64 vector) carries everything over the ranks; rank 0 writes it (`run_writer`). `step` is everywhere
the number of steps done, so the first step ends at step 1.

Shape suffixes: V visits with routed experts, E experts, W ranks of the world, P parts of a step.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distributed.build import choose_dtype
from distributed.clock import StepClock
from distributed.expert_use import ExpertUse
from distributed.figures import Interval, interval_figures
from distributed.halted import HaltingCounter, halting_figures
from distributed.load import LoadCounter, routes_by_owner
from distributed.peak import peak_flops
from distributed.recipe import Recipe
from distributed.reduction import rank_slots, sum_over_ranks
from distributed.run_folder import RunFolder
from distributed.run_writer import RunWriter
from distributed.topology import Topology
from model.accounting import train_flops_per_token
from model.router import Record

_MOST_CANDIDATES = 1 << 16
"""Of more, a micro-batch meets too few to tell how they are used, and their counts would be a large vector to add over ranks."""


class Metrics:
    """One rank's counters, and on rank 0 the files.

    Args:
        run: where to write.
        recipe: the run's recipe.
        topology: rank, world, expert parallelism and device.
        resumed_step: steps done in the checkpoint this start goes on from, 0 at the beginning.
        clock: the clock that the trainer's parts and the kernels' spans are charged to.
        epoch_of: steps done -> epoch, shown when given.
    """

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        topology: Topology,
        resumed_step: int,
        clock: StepClock,
        epoch_of: Callable[[int], float] | None = None,
    ) -> None:
        self._run, self._recipe, self._topology, self._clock = run, recipe, topology, clock
        self._epoch_of = epoch_of
        self._routed = recipe.model.routed_visits()
        self._choices: list[Record] = []
        self._loads = LoadCounter(len(self._routed), recipe.model.feed_forward.routed_experts, topology.device)
        self._halted = HaltingCounter(recipe.model, recipe.data.seq_len, topology.device)
        self._peak = peak_flops(topology.device, choose_dtype(recipe.train.precision, topology.device))
        self._last_step = self._last_counted = resumed_step
        self.figures: dict[str, Any] = {}
        """The last figures logged (rank 0; empty elsewhere and before the first)."""
        self.held_out: dict[str, float] = {}
        """The last held-out nats a source."""
        self._reset()
        self._writer = RunWriter(run, recipe, topology.world, self._peak.source, resumed_step) if topology.rank == 0 else None
        self._clock.read()  # what came before belongs to setting up

    def observe(self, output: Any, n_tokens: int) -> None:
        """Count one micro-batch: its `loads` and how many tokens this rank predicted in it. Reads nothing back.

        What its tokens chose is kept in a step that will be logged: its last micro-batch is looked at more closely.
        """
        self._loads.add(output.loads)
        self._halted.add(output, n_tokens)
        if self._is_logged(self._last_counted + 1):
            self._choices = [{name: record[name] for name in ("feed_forward", "gates") if name in record} for record in output.records]
        self._own_tokens += n_tokens

    def damaged(self, windows: int) -> None:
        """Count windows that this rank left out because they could not be read."""
        self._damaged += windows

    def step(
        self, step: int, loss: Tensor, balance: Tensor, grad_norm: float, lr: float, tokens: int, repeats: int, skipped: bool = False
    ) -> None:
        """Count one optimizer step.

        Args:
            step: its number.
            loss, balance: device scalars, this rank's shares of the global means (their sum over ranks is the mean).
            grad_norm: global norm before clipping.
            lr: the rate of this step.
            tokens: predicted tokens of the step over all ranks.
            repeats: how many times the step went through the group of layers.
            skipped: the update was left out (not finite); its loss is not counted.
        """
        self._last_counted = step
        self._steps += 1
        self._tokens += tokens
        self._repeats += repeats
        self._flops += tokens * train_flops_per_token(self._recipe.model, self._recipe.data.seq_len, repeats)
        self._lr = lr
        if skipped:
            self._skipped += 1
            return
        self._losses += torch.stack((loss.detach().double(), balance.detach().double()))
        self._grad_norms.append(grad_norm)

    def log(self, step: int) -> None:
        """Reduce the interval over the ranks (one collective, so all ranks must call it) and write it on rank 0."""
        interval = self._reduce()
        self._last_step = step
        if self._writer is not None:
            figures = interval_figures(interval, self._routed)
            if self._epoch_of is not None:
                figures["epoch"] = self._epoch_of(step)
            self.figures = self._writer.interval(step, interval, figures, self.held_out)
        self._reset()

    def validation(self, step: int, nats: dict[str, float]) -> None:
        """Keep and write held-out losses, nats a token for every source."""
        self.held_out = dict(nats)
        if self._writer is not None:
            self._writer.validation(step, nats)

    def close(self, failed: bool = False) -> None:
        """Charge the time since the last logging and close the files. No collective."""
        seconds = self._clock.read()
        if self._writer is not None:
            self._writer.close(self._last_step, seconds, failed)

    def _is_logged(self, step: int) -> bool:
        return step % self._recipe.logging.every == 0 or step >= self._recipe.train.steps

    def _reset(self) -> None:
        self._steps, self._skipped, self._tokens, self._own_tokens, self._damaged = 0, 0, 0, 0, 0
        self._lr = 0.0
        self._repeats: int = 0
        self._flops: float = 0.0
        self._choices = []
        self._grad_norms: list[float] = []
        self._losses = torch.zeros(2, dtype=torch.float64, device=self._topology.device)

    def _reduce(self) -> Interval:
        topology = self._topology
        loads_VE = self._loads.take()
        use = ExpertUse(self._recipe.model, topology.device, most=_MOST_CANDIDATES)
        if self._choices:
            use.add(self._choices)
        own = [self._own_tokens, host_bytes(), device_bytes(topology.device), self._peak.flops, self._damaged]
        total = sum_over_ranks(
            {
                "losses": self._losses,
                "own": rank_slots(own, topology),
                "seconds_WP": rank_slots(list(self._clock.read().values()), topology),
                "loads_VE": loads_VE,
                "halted": self._halted.take(),
                "routes_WV": self._routes_by_rank(loads_VE),
                **use.sums(),
            },
            topology,
            "metrics",
        )
        loss, balance = total["losses"].tolist()
        tokens_W, host_W, device_W, peak_W, damaged_W = total["own"].unbind(dim=1)
        return Interval(
            steps=self._steps,
            skipped=self._skipped,
            damaged=int(damaged_W.sum()),
            tokens=self._tokens,
            repeats=None if self._recipe.model.depth.sample is None else self._repeats,
            flops=self._flops,
            loss=loss,
            balance=balance,
            grad_norms=self._grad_norms,
            lr=self._lr,
            seconds_WP=total["seconds_WP"],
            tokens_W=tokens_W,
            host_bytes_W=host_W,
            device_bytes_W=device_W,
            peak_flops_W=peak_W,
            loads_VE=total["loads_VE"],
            halting=halting_figures(total["halted"], self._recipe.data.seq_len),
            routes_WV=total["routes_WV"],
            use=use.figures(total),
        )

    def _routes_by_rank(self, loads_VE: Tensor) -> Tensor:
        """[W, V]: where this rank's routes are computed: in the rows of its expert-parallel group, or here if weights move."""
        topology = self._topology
        routes_WV = torch.zeros(topology.world, loads_VE.shape[0], dtype=torch.float64, device=loads_VE.device)
        if self._recipe.expert_parallel.move == "weights":
            routes_WV[topology.rank] = loads_VE.sum(dim=1).double()
            return routes_WV
        first = topology.rank // topology.expert_parallel * topology.expert_parallel
        routes_WV[first : first + topology.expert_parallel] = routes_by_owner(loads_VE, topology.expert_parallel).T.double()
        return routes_WV


def host_bytes() -> int:
    """Peak resident memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_bytes(device: torch.device) -> int:
    """Peak memory allocated on the accelerator, 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
