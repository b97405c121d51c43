"""The order of a step, and of a run. This file names it; everything it calls lives in a room of its own.

    shards -> windows [B, T+1] -> model -> loss / global tokens + balance / global sequences -> backward (the exchange
    mirrors itself) -> the engine reduces and steps -> metrics, and now and then validation and a checkpoint.

`train` runs in every worker, with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: under
Ray, under torchrun, or alone. It never asks who started it. `python -m distributed.trainer RUN` is the torchrun form.

Shape suffixes: B windows, T positions, V vocabulary.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.baselines import ngram_losses
from data_pipeline.loader import StepLoader
from data_pipeline.manifest import check
from data_pipeline.order import SampleOrder
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.windows import Windows
from distributed import checkpoint, collectives
from distributed.batching import micro_batches, segments_of
from distributed.build import build_model, choose_dtype
from distributed.clock import StepClock
from distributed.engine import build_engine
from distributed.evaluate import held_out_loss
from distributed.metrics import Metrics
from distributed.recipe import Recipe, check_world
from distributed.replay import open_replay
from distributed.run_folder import RunFolder, data_folder
from distributed.schedule import learning_rate
from distributed.summary import build_summary
from distributed.topology import Topology, close_topology, init_topology

Outcome = Literal["finished", "stopped"]


def train(recipe: Recipe, run: RunFolder, resume: bool = False, branch_from: str | None = None) -> Outcome:
    """Train one worker's part of a run until its last step or until it is asked to stop.

    Args:
        recipe: what to compute; equal on all ranks.
        run: where everything is written.
        resume: go on from the newest whole checkpoint of `run`.
        branch_from: `RUN` or `RUN@STEP`, whose checkpoint this new run starts from.

    Raises:
        RunError, DataError, ModelError: something the user can mend.
    """
    topology = init_topology(recipe.expert_parallel.size, timeout_seconds=recipe.cluster.timeout_seconds)
    try:
        check_world(recipe, topology.world)
        return Trainer(recipe, run, topology).fit(resume, branch_from)
    except BaseException as fault:
        run.write_state("failed", rank=topology.rank, error=f"{type(fault).__name__}: {fault}")
        raise
    finally:
        close_topology(topology)


class Trainer:
    """One rank's model, engine, data and metrics, and the loop over steps."""

    def __init__(self, recipe: Recipe, run: RunFolder, topology: Topology) -> None:
        self.recipe, self.run, self.topology = recipe, run, topology
        self.clock = StepClock(topology.device)
        self.data_folder = data_folder(recipe)
        self.manifest = check(self.data_folder, recipe.data)
        self.windows = Windows(self.data_folder, "train")
        self.order = SampleOrder(
            self.windows.counts, {source.name: source.proportion for source in recipe.data.sources}, recipe.train.global_batch, recipe.data.seed
        )
        self.end_of_document = load_tokenizer(self.data_folder).end_of_document
        torch.use_deterministic_algorithms(recipe.train.deterministic)
        self.model = build_model(recipe, topology)
        self.dtype = choose_dtype(recipe.train.precision, topology.device)
        self.engine = build_engine(self.model, recipe.train, topology)
        self.replay = open_replay(recipe.router, run, topology)
        self.step = 0

    def fit(self, resume: bool, branch_from: str | None) -> Outcome:
        """Steps from where the run stands to `train.steps`."""
        self._restore(resume, branch_from)
        self.metrics = Metrics(self.run, self.recipe, self.topology, self.model, resumed_step=self.step)
        last_step = self.recipe.train.steps
        outcome: Outcome = "finished"
        loader = StepLoader(
            self.windows, self._micro_batches, self.step, last_step, self.recipe.data.loader_workers, self.recipe.data.prefetch
        )
        with closing(loader), closing(self.metrics):
            batches = iter(loader)
            while self.step < last_step:
                with self.clock.part("data"):
                    number, windows = next(batches)
                self._train_step(number, windows)
                self.step = number + 1
                stopping = self._asked_to_stop()
                self._now_and_then(stopping or self.step == last_step)
                if stopping and self.step < last_step:
                    outcome = "stopped"
                    break
            self._finish(outcome)
        return outcome

    def _micro_batches(self, step: int) -> list[list[int]]:
        return micro_batches(self.order.ids(step), self.topology.world, self.topology.rank, self.recipe.train.micro_batch)

    def _train_step(self, step: int, windows: list[Tensor]) -> None:
        """Forward and backward over this rank's micro-batches, then one optimizer step."""
        started = time.perf_counter()
        self._seed_dropout(step)
        batches = self._micro_batches(step)
        cross_entropy = torch.zeros((), dtype=torch.float64, device=self.topology.device)
        balance = torch.zeros_like(cross_entropy)
        for number, (ids, tokens_BT) in enumerate(zip(batches, windows, strict=True)):
            with self.clock.part("forward"):
                output, losses = self._losses(step, ids, tokens_BT.to(self.topology.device, non_blocking=True))
            with self.clock.part("backward"):
                self.engine.backward(losses[0] + losses[1], last=number == len(windows) - 1)
            cross_entropy += losses[0].detach()
            balance += losses[1].detach()
            self.metrics.observe(output)
        with self.clock.part("optimizer"):
            rate = learning_rate(step, self.recipe.train)
            report = self.engine.step(rate)
        self.metrics.step(step, cross_entropy, balance, report, rate, seconds=time.perf_counter() - started)

    def _losses(self, step: int, ids: list[int], tokens_BT: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
        """This micro-batch's share of the global losses: shares of all micro-batches and ranks add up to the mean."""
        inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        segments_BT = segments_of(inputs_BT, self.end_of_document) if self.recipe.data.document_mask else None
        records = self.replay.records(step, ids, self.recipe.model.depth.n_visits)
        output = self.engine.module(inputs_BT, segments_BT=segments_BT, records=records)
        self.replay.keep(step, ids, records)
        logits_NV = output.logits_BTV.flatten(0, 1)
        wide = logits_NV.float() if logits_NV.dtype is torch.bfloat16 else logits_NV
        global_batch = self.recipe.train.global_batch
        global_tokens = global_batch * self.recipe.data.seq_len
        cross_entropy = F.cross_entropy(wide, targets_BT.flatten(), reduction="sum") / global_tokens
        return output, (cross_entropy, output.balance_B.sum() / global_batch)

    def _seed_dropout(self, step: int) -> None:
        """Random draws depend on (seed, step, rank) alone, so a resumed step draws what the first one drew."""
        torch.manual_seed((self.recipe.seed * 1_000_003 + step) * 65_537 + self.topology.rank)

    def _asked_to_stop(self) -> bool:
        asked = self.topology.rank == 0 and self.run.stop_path.exists()
        return collectives.any_rank(asked, self.topology, "stop")

    def _now_and_then(self, last: bool) -> None:
        """What does not happen every step: logging, validation, checkpoints; all of them at the last one."""
        recipe = self.recipe
        if last or self.step % recipe.logging.every == 0:
            with self.clock.part("logging"):
                self.metrics.log(self.step)
        if last or self.step % recipe.validation.every == 0:
            with self.clock.part("validation"):
                self.held_out = self._validate()
            self.metrics.validation(self.step, self.held_out)
        if last or self.step % recipe.checkpoint.every == 0:
            with self.clock.part("checkpoint"):
                self._save()

    def _validate(self) -> dict[str, float]:
        """Held-out nats a token, per source."""
        losses = {}
        for source in self.recipe.data.sources:
            windows = Windows(self.data_folder, "held_out", source.name)
            result = held_out_loss(
                self.engine.module,
                windows,
                self.recipe.validation.batch,
                self.topology.device,
                topology=self.topology,
                max_windows=self.recipe.validation.windows,
            )
            losses[source.name] = result["nats"]
        return losses
