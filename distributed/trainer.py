"""The order of a run, around its steps (`distributed.train_step`). This file names it; what it calls lives in rooms of its own.

    shards -> windows [B, T+1] -> a step -> what all ranks agree on -> now and then validation, the log, a checkpoint -> the summary

`train` runs in every worker, with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: under
Ray, under torchrun, or alone. It never asks who started it.

    torchrun --nproc-per-node 2 -m distributed.trainer RUN      # goes on from RUN's newest checkpoint, if there is one
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from data_pipeline.baselines import ngram_losses
from data_pipeline.errors import DataError
from data_pipeline.loader import MicroBatch, StepLoader
from data_pipeline.manifest import check
from data_pipeline.order import SampleOrder
from data_pipeline.windows import Windows
from distributed import collectives, heartbeat
from distributed.batching import micro_batches
from distributed.build import build_model
from distributed.clock import StepClock
from distributed.deterministic import make_deterministic
from distributed.engine import build_engine
from distributed.errors import RunError
from distributed.guard import Guard, Trouble
from distributed.held_out import Scoring, held_out_loss
from distributed.metrics import Metrics
from distributed.move import settle_move
from distributed.persistence import Persistence
from distributed.recipe import Recipe
from distributed.reduction import sum_over_ranks
from distributed.replay import open_replay
from distributed.roll_back import roll_back
from distributed.run_folder import RunFolder, data_folder
from distributed.skips import Skips
from distributed.summary import build_summary, says_finished
from distributed.topology import Topology, close_topology, init_topology
from distributed.train_step import TrainStep
from distributed.world_rules import check_world
from model.accounting import stored_parameters

Outcome = Literal["finished", "stopped", "regroup"]
"""How training ended: at its last step, because it was asked to stop, or after a checkpoint to go on with other workers."""


def train(recipe: Recipe, run: RunFolder, resume: bool = False, branch_from: str | None = None) -> Outcome:
    """Train one worker's part of a run until its last step or until it is asked to stop.

    Args:
        recipe: what to compute; equal on all ranks.
        run: where everything is written.
        resume: go on from the newest whole checkpoint of `run` (from the start where there is none yet).
        branch_from: `RUN` or `RUN@STEP`, whose checkpoint this new run starts from.

    Raises:
        RunError, DataError, ModelError: something the user can mend.
    """
    use_deepspeed = False if recipe.train.engine == "plain" else None
    topology = init_topology(
        recipe.expert_parallel.size,
        table_parallel=recipe.table_parallel.size,
        timeout_seconds=recipe.cluster.timeout_seconds,
        use_deepspeed=use_deepspeed,
    )
    failed = True
    try:
        check_world(recipe, topology.world)
        outcome = Trainer(recipe, run, topology).fit(resume, branch_from)
        failed = False
        return outcome
    except Exception as fault:
        run.change_state("failed", rank=topology.rank, error=f"{type(fault).__name__}: {fault}")
        raise
    finally:
        close_topology(topology, failed=failed)


class Trainer:
    """One rank's model, engine, data and metrics, and the loop over steps."""

    metrics: Metrics

    def __init__(self, recipe: Recipe, run: RunFolder, topology: Topology) -> None:
        if recipe.train.deterministic:
            make_deterministic()
        self.recipe = recipe = settle_move(recipe, run, topology)
        self.run, self.topology = run, topology
        self.clock = StepClock(topology.device)
        self.data_folder = data_folder(recipe)
        self.manifest = check(self.data_folder, recipe.data)
        self.windows = Windows(self.data_folder, "train")
        proportions = {source.name: source.proportion for source in recipe.data.sources}
        batch, seed = recipe.train.global_batch, recipe.data.resolved_order_seed
        self.order = SampleOrder(self.windows.counts, proportions, batch, seed, recipe.data.order)
        self.skips = Skips(run)
        self.document_end = self.windows.end_of_document if recipe.data.document_mask else None
        self.model = build_model(recipe, topology)
        self.engine = build_engine(self.model, recipe.train, topology)
        buffers = dict(self.model.named_buffers())
        self.persistence = Persistence(recipe, run, topology, self.engine, self.model.boxes(), buffers, self.manifest.digest)
        self.train_step = TrainStep(
            recipe,
            run,
            topology,
            self.model,
            self.engine,
            self.clock,
            open_replay(recipe, run, topology),
            self.document_end,
            before_update=self.persistence.settle,
        )
        self.step = 0
        self.held_out: dict[str, float] = {}

    def fit(self, resume: bool, branch_from: str | None) -> Outcome:
        """Steps from where the run stands to `train.steps`."""
        self.step = self.persistence.restore(resume, branch_from)
        if self.step >= self.recipe.train.steps:
            self._check_unfinished()
        try:
            while True:
                heartbeat.position.begin(self.step, lambda: self.clock.part_now)
                self.metrics = self._open_metrics()
                ended = self._run_stretch()
                if not isinstance(ended, Trouble):
                    return ended
                self.step = roll_back(ended, self.recipe, self.run, self.skips, self.persistence, self.topology)
        finally:
            self.clock.close()

    def _check_unfinished(self) -> None:
        """A run whose last step is saved has nothing to train; one that died before it could say so is measured again."""
        if says_finished(self.run, self.step):
            raise RunError(
                f"run '{self.run.name}' has done all of its train.steps ({self.recipe.train.steps}); "
                f"to go on: ./launch.sh resume {self.run.name} train.steps={2 * self.step}"
            )
        self.held_out = self._validate()

    def _run_stretch(self) -> Outcome | Trouble:
        """Train until there is a reason not to go on, and finish the run if it is a good one. Then close the metrics:
        steps that nobody logged before a failure or trouble will be done again.
        """
        kept = False
        try:
            ended = self._run_steps()
            if not isinstance(ended, Trouble):
                with self.clock.part("checkpoint"):
                    self.persistence.close()
                self._finish()
                kept = True
            return ended
        finally:
            self.metrics.close(failed=not kept)

    def _run_steps(self) -> Outcome | Trouble:
        """The steps themselves."""
        data, last_step = self.recipe.data, self.recipe.train.steps
        guard = Guard(self.recipe.guard)
        reading = (data.loader_workers, data.prefetch, data.on_damage == "skip")
        with StepLoader(self.windows, self._micro_batches, self.step, last_step, *reading) as loader:
            for number, micro_batches in self._timed(iter(loader)):
                loss, skipped = self.train_step(number, micro_batches, self.metrics)
                self.persistence.poll()
                asked = self._agree(loss)
                if trouble := guard.watch(number, asked["loss"], skipped):
                    return trouble
                self.step = heartbeat.position.step = number + 1
                saved = self._now_and_then(last=asked["stop"] > 0 or self.step == last_step)
                if asked["stop"] and self.step < last_step:
                    return "stopped"
                if asked["regroup"] and saved and self.step < last_step:
                    return "regroup"
        return "finished"

    def _timed(self, batches: Iterator[tuple[int, list[MicroBatch]]]) -> Iterator[tuple[int, list[MicroBatch]]]:
        while True:
            with self.clock.part("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _micro_batches(self, step: int) -> list[list[int]]:
        ids = self.order.ids(self.skips.order_step(step))
        return micro_batches(ids, self.topology.world, self.topology.rank, self.recipe.train.micro_batch)

    def _agree(self, loss: Tensor) -> dict[str, float]:
        """What all ranks must know at the end of a step, in one collective: the requests that rank 0 sees, and the global loss."""
        first = self.topology.rank == 0
        votes = torch.tensor([first and self.run.stop_path.exists(), first and self.run.regroup_path.exists()], dtype=torch.float64)
        total = sum_over_ranks({"votes": votes, "loss": loss}, self.topology, "step")
        stop, regroup = total["votes"].tolist()
        return {"stop": stop, "regroup": regroup, "loss": float(total["loss"])}

    def _now_and_then(self, last: bool) -> bool:
        """What does not happen every step: logging, validation, checkpoints; all of them at the last one. Whether it saved."""
        recipe = self.recipe
        if last or self.step % recipe.validation.every == 0:
            with self.clock.part("validation"):
                self.held_out = self._validate()
            self.metrics.validation(self.step, self.held_out)
        if last or self.step % recipe.logging.every == 0:  # before the save: a run that dies after it goes on from there
            with self.clock.part("logging"):
                self.metrics.log(self.step)
        saves = last or self.step % recipe.checkpoint.every == 0
        if saves:
            with self.clock.part("checkpoint"):
                self.persistence.save(self.step, self.held_out)
        return saves

    def _validate(self) -> dict[str, float]:
        """Held-out nats a token, per source."""
        wanted = self.recipe.validation
        scoring = Scoring(wanted.batch, wanted.windows, self.document_end)
        losses = {}
        for source in self.recipe.data.sources:
            windows = Windows(self.data_folder, "held_out", source.name, skip_damaged=self.recipe.data.on_damage == "skip")
            losses[source.name] = held_out_loss(self.model, windows, scoring, self.topology.device, self.topology)["nats"]
            self.run.append_damaged(self.step, windows.damaged)
        return losses

    def _open_metrics(self) -> Metrics:
        return Metrics(self.run, self.recipe, self.topology, self.step, self.clock, epoch_of=lambda step: step / self.order.steps_per_epoch)

    def _baselines(self) -> dict[str, dict[str, float]]:
        """Nats of the unigram and bigram models over the windows of `_validate`, by source; none where they need damaged windows."""
        try:
            return ngram_losses(self.data_folder, self.recipe.validation.windows)
        except DataError as fault:
            if self.recipe.data.on_damage == "stop":
                raise
            print(f"no baselines: {fault}", flush=True)
            return {}

    def _finish(self) -> None:
        """Rank 0 writes what the run says at its end, and the state that `status` shows."""
        if self.topology.rank == 0:
            summary = build_summary(
                self.run,
                self.recipe,
                self.metrics,
                self.manifest,
                self._baselines(),
                self.held_out,
                step=self.step,
                checkpoint=self.persistence.newest,
                parameters=stored_parameters(self.recipe.model),
            )
            self.run.change_state(summary["state"])
            self.run.stop_path.unlink(missing_ok=True)
        collectives.barrier("end", self.topology)


def main(argv: list[str]) -> int:
    """`python -m distributed.trainer RUN` in every process that a launcher such as torchrun started."""
    run = RunFolder.existing(argv[0])
    print(train(run.recipe(), run, resume=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
