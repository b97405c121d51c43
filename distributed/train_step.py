"""One step on one rank: forward and backward over its micro-batches, then one optimizer step.

    windows [B, T+1] -> model -> loss / global tokens + (balance + halting) / global sequences -> backward (the exchange
    mirrors itself) -> the engine reduces and steps -> metrics

Shares of the loss are divided by what the whole step holds, so over all micro-batches and ranks they add up to its mean.

Shape suffixes: B windows, T positions, N predicted tokens (B * T), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from data_pipeline.loader import MicroBatch
from distributed.batching import segments_of
from distributed.clock import StepClock
from distributed.engine import Engine
from distributed.metrics import Metrics
from distributed.recipe import Recipe
from distributed.replay import Replay
from distributed.run_folder import RunFolder
from distributed.schedule import learning_rate
from distributed.step_balance import StepBalance
from distributed.step_moves import StepMoves
from distributed.topology import Topology
from model.moeut import ModelOutput, MoEUT


class TrainStep:
    """What a step needs, and the step.

    Args:
        document_end: the token that ends a document, where attention stays inside one; else None.
        before_update: called once a step between its last backward and its update, which it may hold up.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        topology: Topology,
        model: MoEUT,
        engine: Engine,
        clock: StepClock,
        replay: Replay,
        document_end: int | None,
        before_update: Callable[[], None],
    ) -> None:
        self.recipe, self.run, self.topology = recipe, run, topology
        self.model, self.engine, self.clock, self.replay = model, engine, clock, replay
        self.document_end, self.before_update = document_end, before_update
        self.balance, self.moves = StepBalance(model, topology), StepMoves(model, topology)

    def __call__(self, step: int, batches: list[MicroBatch], metrics: Metrics) -> tuple[Tensor, bool]:
        """This rank's share of the step's cross-entropy, and whether the update was skipped."""
        self.model.train()
        self._measure_balance(step, batches)
        self._seed_dropout(step)
        loss = torch.zeros((), dtype=torch.float64, device=self.topology.device)
        balance = torch.zeros_like(loss)
        for number, batch in enumerate(batches):
            with self.clock.part("forward"):
                output, cross_entropy, balance_share = self._forward(step, batch.ids, batch.tokens_BT)
            with self.clock.part("backward"):
                ponder_share = output.ponder_B.sum() / self.recipe.train.global_batch
                self.engine.backward(cross_entropy + balance_share + ponder_share, last=number == len(batches) - 1)
            loss += cross_entropy.detach()
            balance += balance_share.detach()
            self.moves.observe(output)
            metrics.observe(output, len(batch.ids) * self.recipe.data.seq_len)
            if batch.damaged:
                self.run.append_damaged(step + 1, batch.damaged)
                metrics.damaged(len(batch.damaged))
        with self.clock.part("checkpoint"):
            self.before_update()
        with self.clock.part("optimizer"):
            rate = learning_rate(step, self.recipe.train)
            report = self.engine.step(rate)
            self.moves.finish(report.skipped)
        metrics.step(step + 1, loss, balance, report.grad_norm, rate, self._tokens_per_step, self._repeats(step), report.skipped)
        return loss, report.skipped

    def _forward(self, step: int, ids: list[int], tokens_BT: Tensor) -> tuple[ModelOutput, Tensor, Tensor]:
        """One micro-batch: the output and its shares of the global cross-entropy and balance losses."""
        records = self.balance.next_records() or self.replay.records(step, ids, self._made(step))
        output = self.engine.module(**self._inputs(step, tokens_BT), records=records, step_means=self.balance.means)
        self.replay.keep(step, ids, output.records)
        cross_entropy = output.cross_entropy / self._tokens_per_step
        return output, cross_entropy, output.balance_B.sum() / self.recipe.train.global_batch

    def _inputs(self, step: int, tokens_BT: Tensor) -> dict[str, Any]:
        tokens_BT = tokens_BT.to(self.topology.device, non_blocking=True)
        inputs_BT = tokens_BT[:, :-1]
        segments_BT = None if self.document_end is None else segments_of(inputs_BT, self.document_end)
        return {"tokens_BT": inputs_BT, "targets_BT": tokens_BT[:, 1:], "segments_BT": segments_BT, "repeats": self._repeats(step)}

    def _measure_balance(self, step: int, batches: list[MicroBatch]) -> None:
        """Where a regulariser is of the whole step: a forward over all of it first, with the random draws of the one to come."""
        if not self.balance.looks_ahead(len(batches)):
            return
        self._seed_dropout(step)
        with self.clock.part("forward"), torch.no_grad():
            self.balance.measure(self._look_at(step, batch) for batch in batches)

    def _look_at(self, step: int, batch: MicroBatch) -> ModelOutput:
        records = self.replay.records(step, batch.ids, self._made(step))
        return self.model(**self._inputs(step, batch.tokens_BT), records=records, read_out=False)

    @property
    def _tokens_per_step(self) -> int:
        return self.recipe.train.global_batch * self.recipe.data.seq_len

    def _repeats(self, step: int) -> int:
        """How often a step goes through the group of layers: drawn from (seed, step) alone where it is drawn."""
        return self.recipe.model.depth.repeats_of_step(self.recipe.seed, step)

    def _made(self, step: int) -> list[bool]:
        """Of every visit that the model can make, whether this step makes it."""
        return self.recipe.model.depth.made(self._repeats(step))

    def _seed_dropout(self, step: int) -> None:
        """Random draws depend on (seed, step, rank) alone, so a resumed step draws what it would have drawn."""
        torch.manual_seed((self.recipe.seed * 1_000_003 + step) * 65_537 + self.topology.rank)
