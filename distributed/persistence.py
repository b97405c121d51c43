"""When a run is saved and where it goes on from: the trainer's use of checkpoints.

A resume needs nothing of the data but the step, because the sample order is a pure function of it; the manifest still names
the data set, so that a run does not go on over another corpus unnoticed.
"""

from __future__ import annotations

from pathlib import Path

from distributed import checkpoint
from distributed.engine import Engine
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.topology import Topology
from model.sharding import Box


class Persistence:
    """One rank's part in saving and restoring a run. All ranks call every method together.

    Args:
        boxes: where every parameter lies in its global tensor.
        data_digest: names the prepared data set.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, topology: Topology, engine: Engine, boxes: dict[str, Box], data_digest: str) -> None:
        self._recipe, self._run, self._topology, self._engine, self._boxes = recipe, run, topology, engine, boxes
        self._data = {"digest": data_digest, "seed": recipe.data.seed, "global_batch": recipe.train.global_batch}
        self.newest: str | None = None
        """Name of the last checkpoint saved or loaded."""

    def restore(self, resume: bool, branch_from: str | None) -> int:
        """Load what the run goes on from, if anything; the number of steps done there.

        Raises:
            RunError: the checkpoint named by `branch_from` is not there, or a checkpoint is of another model or data set.
        """
        path = checkpoint.newest(self._run.checkpoints, self._topology) if resume else None
        if path is not None:
            return self._load(path, same_data=True)
        return self._load(branch_point(branch_from), same_data=False) if branch_from else 0

    def save(self, step: int, held_out: dict[str, float]) -> None:
        """Write checkpoint `step` and delete those that the recipe does not keep."""
        meta = checkpoint.Meta(
            applied_steps=self._engine.applied_steps,
            tokens=step * self._recipe.train.global_batch * self._recipe.data.seq_len,
            data=self._data,
            metrics={"held_out": held_out},
            recipe=self._recipe.model_dump(mode="json"),
        )
        path = checkpoint.save(self._run.checkpoints, step, self._engine.fragments(), {}, meta, self._topology)
        self.newest = path.name
        if self._topology.rank == 0:
            kept = self._recipe.checkpoint
            checkpoint.retain(self._run.checkpoints, kept.keep_last, kept.keep_every)

    def _load(self, path: Path, same_data: bool) -> int:
        manifest = checkpoint.load(path, self._engine.fragments(), self._boxes, {}, self._topology)
        if same_data and manifest.meta.data != self._data:
            raise RunError(
                f"checkpoint {path} was made with data {manifest.meta.data}, the run now has {self._data}; "
                "its samples would not be the same: restore the data set, or branch with ./launch.sh train --from"
            )
        self._engine.finish_load(manifest.meta.applied_steps)
        self.newest = path.name
        return manifest.step


def branch_point(branch_from: str) -> Path:
    """The checkpoint that `RUN@STEP` names, or the newest of `RUN`.

    Raises:
        RunError: there is no such run, step, or whole checkpoint.
    """
    name, at, step = branch_from.partition("@")
    folder = RunFolder.existing(name).checkpoints
    if not at:
        steps = checkpoint.list_checkpoints(folder)
        if not steps:
            raise RunError(f"run '{name}' has no checkpoint to branch from; train it until checkpoint.every")
        return checkpoint.chosen(folder, max(steps))
    if not step.isdigit():
        raise RunError(f"--from {branch_from}: '{step}' must be the number of a step, as in {name}@100")
    return checkpoint.chosen(folder, int(step))
