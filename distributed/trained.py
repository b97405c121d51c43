"""A run's model as it stands in a checkpoint, in one process, for evaluation and generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from distributed.build import build_model
from distributed.checkpoint import Checkpoint, Storage, chosen, list_checkpoints, load_parameters
from distributed.errors import RunError
from distributed.persistence import storage_of
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder, data_folder
from distributed.topology import Topology
from model.moeut import MoEUT


@dataclass(frozen=True)
class Trained:
    """The model in evaluation mode with all experts here, what it was made from, and the step it stands at."""

    model: MoEUT
    recipe: Recipe
    tokenizer: Tokenizer
    device: torch.device
    step: int


def load_trained(run: RunFolder, step: int | None = None) -> Trained:
    """Load the weights (not the optimizer's state) of a checkpoint.

    Args:
        run: a run with a checkpoint, made by any number of workers.
        step: which checkpoint; None: the newest.

    Raises:
        RunError: there is no such checkpoint, or it is damaged. DataError: the data set is missing or not the run's.
    """
    recipe = run.recipe()
    storage = storage_of(recipe, run)

    def choose() -> Checkpoint:
        return chosen(storage, _newest(run, storage) if step is None else step)

    choose()  # a mistake is answered before the model is built
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(recipe, Topology(0, 1, 0, 1, device, "none", None, None, None))
    manifest = load_parameters(choose(), model)  # anew: meanwhile a run at work may have deleted the first choice
    return Trained(model.eval(), recipe, load_tokenizer(data_folder(recipe)), device, manifest.step)


def _newest(run: RunFolder, storage: Storage) -> int:
    """The newest committed step. Reading moves nothing aside: the run may be at work."""
    steps = list_checkpoints(storage)
    if not steps:
        raise RunError(f"run '{run.name}' has no checkpoint yet; wait for the first one (checkpoint.every), or train it again")
    return max(steps)
