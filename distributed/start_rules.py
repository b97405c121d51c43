"""What must hold before a run starts, besides its recipe: the number of workers, the engine, the run whose choices it takes.

Asked where a run is planned, and by every rank again; so it imports no torch.
"""

from __future__ import annotations

from distributed.engine_choice import choose_engine
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.world_rules import check_world


def check_start(recipe: Recipe, workers: int) -> None:
    """Whether the recipe can be trained by so many workers, here and now.

    Raises:
        RunError: naming the field and the mend.
    """
    check_world(recipe, workers)
    choose_engine(recipe.train, workers, connected=workers > 1)
    recorded_choices(recipe)


def recorded_choices(recipe: Recipe) -> RunFolder | None:
    """The run whose expert choices the recipe takes (`router.choices`); None where routers choose.

    Raises:
        RunError: that run is missing, recorded none, or routes otherwise.
    """
    name = recipe.router.choices
    if recipe.router.replay != "use" or name is None:
        return None
    try:
        recorded = RunFolder.existing(name)
    except RunError as fault:
        raise RunError(f"router.choices is '{name}': {fault}") from None
    theirs, ours = recorded.recipe().model, recipe.model
    for part in ("depth", "attention", "feed_forward", "feed_forward_at"):
        if getattr(theirs, part) != getattr(ours, part):
            raise RunError(f"router.choices is '{name}', a run with another model.{part}; its choices do not fit this model")
    if not recorded.choices.is_dir():
        raise RunError(f"router.choices is '{name}', which recorded no choices; run it with router.replay=record")
    return recorded
