"""Which (workers, expert parallelism) a recipe can run, and the best one for the room there is. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.world_rules import check_world


@dataclass(frozen=True)
class Layout:
    """Workers of a group, and how many of them share one set of experts."""

    world: int
    expert_parallel: int

    def __str__(self) -> str:
        return f"{self.world} worker{'' if self.world == 1 else 's'}, expert parallelism {self.expert_parallel}"


def best_layout(recipe: Recipe, room: int, least: int, most: int, multiple: int = 1) -> Layout | None:
    """The largest allowed layout of at most `room` workers.

    Args:
        least, most: bounds on the workers.
        multiple: workers come in multiples of this (`cluster.nodes`: the same number on every node).
    """
    largest = min(room, most) // multiple * multiple
    return next(allowed_layouts(recipe, range(largest, least - 1, -multiple)), None)


def allowed_layouts(recipe: Recipe, worlds: range) -> Iterator[Layout]:
    """The layouts that the recipe can run, one a world at most; worlds whose batch or experts do not fit are passed over."""
    for world in worlds:
        size = largest_expert_parallel(recipe, world)
        if size is not None:
            yield Layout(world, size)


def largest_expert_parallel(recipe: Recipe, world: int) -> int | None:
    """The largest divisor of `world` up to the recipe's expert_parallel.size that passes `check_world`; None where none does."""
    for size in range(min(world, recipe.expert_parallel.size), 0, -1):
        if _passes(with_expert_parallel(recipe, size), world):
            return size
    return None


def fit_expert_parallel(recipe: Recipe, world: int) -> Recipe:
    """The recipe with an expert_parallel.size of at most `world`.

    For runs that left both numbers to the recipe: results do not depend on the size, so one GPU can run what was written for two.
    """
    return with_expert_parallel(recipe, min(world, recipe.expert_parallel.size))


def with_expert_parallel(recipe: Recipe, size: int) -> Recipe:
    """The recipe with another expert_parallel.size."""
    return recipe.model_copy(update={"expert_parallel": recipe.expert_parallel.model_copy(update={"size": size})})


def _passes(recipe: Recipe, world: int) -> bool:
    try:
        check_world(recipe, world)
    except RunError:
        return False
    return True
