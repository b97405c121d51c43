"""Going back to the last good checkpoint after trouble, leaving the samples of the bad steps out."""

from __future__ import annotations

from distributed import collectives
from distributed.checkpoint import list_checkpoints
from distributed.checkpoint.abandon import abandon_after
from distributed.errors import RunError
from distributed.guard import Trouble
from distributed.persistence import Persistence
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.skips import Skips
from distributed.topology import Topology


def roll_back(trouble: Trouble, recipe: Recipe, run: RunFolder, skips: Skips, persistence: Persistence, topology: Topology) -> int:
    """Load the newest checkpoint from before the trouble; the number of steps done there. All ranks call it.

    Raises:
        RunError: the recipe asks to stop instead, has no more roll-backs, or there is no such checkpoint.
    """
    words = f"steps {trouble.first + 1} to {trouble.last + 1}: {trouble.reason}"
    if recipe.guard.action == "stop":
        raise RunError(
            f"{words}; to go back to the checkpoint before and leave their samples out: "
            f"./launch.sh resume {run.name} guard.action=roll_back; to change train.lr or train.clip: ./launch.sh train --from {run.name}"
        )
    if skips.roll_backs >= recipe.guard.max_roll_backs:
        raise RunError(f"{words}; guard.max_roll_backs is {recipe.guard.max_roll_backs} and {skips.roll_backs} were made; lower train.lr")
    persistence.finish()
    good = [step for step in list_checkpoints(persistence.storage) if step <= trouble.first] if topology.rank == 0 else []
    if collectives.largest(max(good, default=-1), topology, "roll_back.good") < 0:
        raise RunError(f"{words}; there is no checkpoint from before to go back to; lower train.lr, or checkpoint.every")
    if topology.rank == 0:
        abandon_after(persistence.storage, trouble.first)
    collectives.barrier("roll_back.abandoned", topology)
    step = persistence.restore(True, None)
    skips.add(trouble.first, trouble.last, trouble.reason, rolled_back_to=step, write=topology.rank == 0)
    if topology.rank == 0:
        print(f"{words}; went back to step {step} and leave the samples of those steps out", flush=True)
    return step
