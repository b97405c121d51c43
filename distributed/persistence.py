"""When a run is saved and where it goes on from: the trainer's use of checkpoints.

A resume needs nothing of the data but the step, because the sample order is a pure function of it; the manifest still names
the data set, so that a run does not go on over another corpus unnoticed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distributed import checkpoint, collectives
from distributed.checkpoint import Checkpoint, Saver, Storage
from distributed.checkpoint.fence import sees_fence
from distributed.checkpoint.folder import step_name
from distributed.checkpoint.storage import as_storage
from distributed.engine import Engine
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.topology import Topology
from distributed.world_rules import check_same_world
from model.sharding import Box


class Persistence:
    """One rank's part in saving and restoring a run. All ranks call every method but `poll` and `settle` together.

    Args:
        boxes: where every parameter lies in its global tensor.
        buffers: state of the model that is no parameter, equal on all ranks, as live tensors.
        data_digest: names the prepared data set.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        topology: Topology,
        engine: Engine,
        boxes: dict[str, Box],
        buffers: dict[str, Tensor],
        data_digest: str,
    ) -> None:
        self._recipe, self._run, self._topology, self._engine, self._boxes, self._buffers = recipe, run, topology, engine, boxes, buffers
        self._data = {"digest": data_digest, "seed": recipe.data.resolved_order_seed, "global_batch": recipe.train.global_batch}
        self.storage = storage_of(recipe, run)
        self._saver: Saver | None = None
        self.events: list[dict[str, Any]] = []
        """What came of saves, oldest first: see `Saver.events`."""

    @property
    def newest(self) -> str | None:
        """Name of the last checkpoint committed or loaded."""
        return None if self._saver is None or self._saver.newest is None else step_name(self._saver.newest)

    def restore(self, resume: bool, branch_from: str | None) -> int:
        """Load what the run goes on from, if anything; the number of steps done there. From here on this group owns the run.

        Raises:
            RunError: the checkpoint named by `branch_from` is not there, a checkpoint is of another model or data set, all are
                damaged, or a new run would write among the checkpoints of an older one.
        """
        self.finish()
        self._saver = self._new_saver(self._take_over(resume))
        if resume and collectives.any_rank(bool(checkpoint.list_checkpoints(self.storage)), self._topology, "checkpoint.any"):
            self._saver.newest = self._load(self._newest_whole(), same_data=True)
            return self._saver.newest
        return self._load(branch_point(branch_from), same_data=False) if branch_from else 0

    def save(self, step: int, held_out: dict[str, float]) -> None:
        """Begin checkpoint `step` (without `checkpoint.asynchronous`: write it). A failure is told and not raised.

        Raises:
            RunError: another group of processes has taken the run over.
        """
        meta = checkpoint.Meta(
            applied_steps=self._engine.applied_steps,
            tokens=step * self._recipe.train.global_batch * self._recipe.data.seq_len,
            data=self._data,
            metrics={"held_out": held_out},
            recipe=self._recipe.model_dump(mode="json"),
        )
        if self._saver is None:
            raise RuntimeError("restore comes before the first save")
        self._saver.save(step, self._engine.fragments(), self._buffers, meta)

    def settle(self) -> None:
        """Have copied what the last save is to hold; for every step, before the optimizer."""
        if self._saver is not None:
            self._saver.settle()

    def poll(self) -> None:
        """Tell of a save that has ended since the last call; cheap and local, for every step boundary."""
        if self._saver is not None:
            self._saver.poll()

    def finish(self) -> None:
        """Wait for the save on its way, if there is one, whatever comes of it."""
        if self._saver is not None:
            self._saver.finish()

    def close(self) -> None:
        """Wait for the last save.

        Raises:
            RunError: it failed, on all ranks.
        """
        if self._saver is not None:
            self._saver.close()

    def _newest_whole(self) -> Checkpoint:
        found = checkpoint.newest(self.storage, self._topology)
        if found is None:
            raise RunError(
                f"all checkpoints in {self.storage.address} are damaged and set aside: nothing is left to go on from; "
                f"./launch.sh resume {self._run.name} begins again at step 0"
            )
        return found

    def _take_over(self, resume: bool) -> int:
        """This group's fencing number, equal on all ranks."""
        used, fence = False, 0
        if self._topology.rank == 0:
            used = not resume and bool(checkpoint.list_checkpoints(self.storage))
            fence = 0 if used else checkpoint.raise_fence(self.storage)
        fence = collectives.largest(fence, self._topology, "checkpoint.fence")
        if fence == 0:
            raise RunError(
                f"{self.storage.address} holds checkpoints of an older run '{self._run.name}'; choose another name with --name, "
                f"go on with ./launch.sh resume {self._run.name}, or remove them"
            )
        if collectives.any_rank(not sees_fence(self.storage, fence), self._topology, "checkpoint.shared"):
            raise RunError(
                f"not all workers see what rank 0 wrote at {self.storage.address}: checkpoints need a place that all hosts share; "
                "set checkpoint.address to one"
            )
        return fence

    def _new_saver(self, fence: int) -> Saver:
        kept = self._recipe.checkpoint
        saver = Saver(
            self.storage,
            self._topology,
            fence,
            kept.asynchronous,
            after_commit=lambda: checkpoint.retain(self.storage, kept.keep_last, kept.keep_every),
            report=lambda message: print(message, flush=True),
        )
        saver.events = self.events  # one list over roll-backs
        return saver

    def _load(self, path: Checkpoint, same_data: bool) -> int:
        manifest = checkpoint.load(path, self._engine.fragments(), self._boxes, self._buffers, self._topology)
        if same_data and manifest.meta.data != self._data:
            raise RunError(
                f"checkpoint {path} was made with data {manifest.meta.data}, the run now has {self._data}; "
                "its samples would not be the same: restore the data set, or branch with ./launch.sh train --from"
            )
        if same_data:
            check_same_world(self._recipe, manifest.world, self._topology.world)
        self._engine.finish_load(manifest.meta.applied_steps)
        return manifest.step


def storage_of(recipe: Recipe, run: RunFolder) -> Storage:
    """Where the checkpoints of a run lie: its folder, or a folder of its name at `checkpoint.address`.

    Raises:
        RunError: the address cannot be served.
    """
    address = recipe.checkpoint.address
    return as_storage(run.checkpoints) if address is None else checkpoint.open_storage(f"{address.rstrip('/')}/{run.name}")


def branch_point(branch_from: str) -> Checkpoint:
    """The checkpoint that `RUN@STEP` names, or the newest of `RUN`.

    Raises:
        RunError: there is no such run, step, or whole checkpoint.
    """
    name, at, step = branch_from.partition("@")
    run = RunFolder.existing(name)
    storage = storage_of(run.recipe(), run)
    if not at:
        steps = checkpoint.list_checkpoints(storage)
        if not steps:
            raise RunError(f"run '{name}' has no checkpoint to branch from; train it until checkpoint.every")
        return checkpoint.chosen(storage, max(steps))
    if not step.isdigit():
        raise RunError(f"--from {branch_from}: '{step}' must be the number of a step, as in {name}@100")
    return checkpoint.chosen(storage, int(step))
