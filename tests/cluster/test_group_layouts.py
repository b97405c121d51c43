"""Which (workers, expert parallelism) a recipe may run."""

from __future__ import annotations

import pytest
from conftest import CODE_ROOT
from hypothesis import given
from hypothesis import strategies as st

from cluster.layouts import Layout, best_layout, largest_expert_parallel, with_expert_parallel
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe
from distributed.world_rules import check_world

RECIPE = load_recipe(CODE_ROOT / "configs" / "quickstart.yaml", [])


def sized(recipe: Recipe, batch: int, uneven: bool, size: int) -> Recipe:
    train = recipe.train.model_copy(update={"global_batch": batch, "uneven_batch": uneven})
    return with_expert_parallel(recipe.model_copy(update={"train": train}), size)


@pytest.mark.parametrize(
    ("room", "batch", "uneven", "size", "found"),
    [
        (4, 16, False, 2, (4, 2)),
        (3, 16, True, 2, (3, 1)),  # 2 does not divide 3
        (3, 16, False, 2, (2, 2)),  # 16 sequences over 3 workers only with train.uneven_batch
        (3, 16, True, 4, (3, 3)),
        (6, 12, False, 4, (6, 3)),
        (1, 16, False, 4, (1, 1)),
        (0, 16, False, 2, None),
    ],
)
def test_after_a_loss(recipe: Recipe, room: int, batch: int, uneven: bool, size: int, found: tuple[int, int] | None) -> None:
    layout = best_layout(sized(recipe, batch, uneven, size), room, least=1, most=8)
    assert (None if layout is None else (layout.world, layout.expert_parallel)) == found


def test_bounds(recipe: Recipe) -> None:
    recipe = sized(recipe, 16, True, 2)
    assert best_layout(recipe, 3, least=4, most=4) is None
    assert best_layout(recipe, 64, least=1, most=4) == Layout(4, 2)
    assert best_layout(recipe, 5, least=1, most=8, multiple=2) == Layout(4, 2)


@pytest.mark.parametrize("bounds", ["cluster.max_workers=2", "cluster.min_workers=5"])
def test_bounds_that_contradict_the_workers(bounds: str) -> None:
    with pytest.raises(RunError, match=r"workers=4.*must not decrease"):
        load_recipe(CODE_ROOT / "configs" / "quickstart.yaml", ["cluster.workers=4", bounds])


@given(world=st.integers(1, 12), batch=st.integers(1, 24), uneven=st.booleans(), size=st.integers(1, 12))
def test_what_is_chosen_passes_every_check_and_is_the_largest(world: int, batch: int, uneven: bool, size: int) -> None:
    recipe = sized(RECIPE, batch, uneven, size)
    chosen = largest_expert_parallel(recipe, world)
    if chosen is not None:
        check_world(with_expert_parallel(recipe, chosen), world)
        assert not any(world % larger == 0 for larger in range(chosen + 1, size + 1))
