"""Which numbers of workers a recipe can run with."""

from __future__ import annotations

from distributed.errors import RunError
from distributed.recipe import Recipe


def check_same_world(recipe: Recipe, before: int, now: int) -> None:
    """A run goes on with `now` workers after `before`.

    Raises:
        RunError: statistics of a micro-batch would be of other micro-batches, and the recipe does not allow it.
    """
    if before != now and "micro_batch" in recipe.model.statistic_scopes() and not recipe.router.allow_micro_batch_scope:
        raise RunError(
            f"the run had {before} workers and now has {now}, but its routing has statistics of scope 'micro_batch', which depend on that: "
            f"set cluster.workers={before}"
        )


def check_world(recipe: Recipe, workers: int) -> None:
    """Faults that depend on how many workers there are.

    Raises:
        RunError: expert parallelism or the batch does not fit the number of workers.
    """
    size = recipe.expert_parallel.size
    if workers % size:
        fits = [n for n in range(1, workers + 1) if workers % n == 0]
        raise RunError(f"expert_parallel.size is {size}, which does not divide {workers} workers; choose one of {fits}")
    if size > 1 and not recipe.model.feed_forward.routed_experts:
        kind = recipe.model.feed_forward.kind
        raise RunError(f"expert_parallel.size is {size} but model.feed_forward.kind is '{kind}', which has no experts; set it to 1")
    batch = recipe.train.global_batch
    if batch < workers:
        raise RunError(f"train.global_batch is {batch}, fewer than one sequence a worker; raise it to {workers} or more")
    if batch % workers and not recipe.train.uneven_batch:
        below, above = batch // workers * workers, -(-batch // workers) * workers
        raise RunError(
            f"train.global_batch is {batch}, which {workers} workers cannot share equally; "
            f"choose {below or above} or {above}, or set train.uneven_batch=true"
        )
