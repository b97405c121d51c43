"""Which numbers of workers a recipe can run with."""

from __future__ import annotations

from distributed.errors import RunError
from distributed.recipe import Recipe


def check_same_world(recipe: Recipe, before: int, now: int) -> None:
    """A run goes on with `now` workers after `before`.

    Raises:
        RunError: statistics of a micro-batch would be of other micro-batches, and the recipe does not allow it.
    """
    fields = recipe.micro_batch_fields
    if before != now and fields and not recipe.router.allow_micro_batch_scope:
        raise RunError(
            f"the run had {before} workers and now has {now}, but {fields[0]} asks for statistics of a micro-batch, which depend on that: "
            f"set cluster.workers={before} cluster.min_workers={before} cluster.max_workers={before}"
        )


def check_world(recipe: Recipe, workers: int) -> None:
    """Faults that depend on how many workers there are.

    Raises:
        RunError: expert or table parallelism or the batch does not fit the number of workers.
    """
    for field, size in (("expert_parallel", recipe.expert_parallel.size), ("table_parallel", recipe.table_parallel.size)):
        if workers % size:
            fits = [n for n in range(1, workers + 1) if workers % n == 0]
            raise RunError(f"{field}.size is {size}, which does not divide {workers} workers; choose one of {fits}")
    _check_experts(recipe)
    _check_tables(recipe)
    batch = recipe.train.global_batch
    if batch < workers:
        raise RunError(f"train.global_batch is {batch}, fewer than one sequence a worker; raise it to {workers} or more")
    if batch % workers and not recipe.train.uneven_batch:
        below, above = batch // workers * workers, -(-batch // workers) * workers
        raise RunError(
            f"train.global_batch is {batch}, which {workers} workers cannot share equally; "
            f"choose {below or above} or {above}, or set train.uneven_batch=true"
        )


def _check_experts(recipe: Recipe) -> None:
    """Whether there are experts to partition."""
    asked, model = recipe.expert_parallel, recipe.model
    if asked.size == 1 or model.feed_forward.routed_experts:
        return
    kind, of_attention = model.feed_forward.kind, asked.attention and model.attention.kind == "switchhead"
    if not (of_attention and model.attention.router_rows):
        raise RunError(f"expert_parallel.size is {asked.size} but model.feed_forward.kind is '{kind}', which has no experts; set it to 1")
    if asked.move == "auto":
        raise RunError("expert_parallel.move is 'auto', tried with feed-forward experts, of which there are none; set tokens or weights")


def _check_tables(recipe: Recipe) -> None:
    """Whether there are tables to cut, and a column for every rank."""
    size, model = recipe.table_parallel.size, recipe.model
    if size > 1 and not any(model.feed_forward_of(layer).table_rows for layer in range(model.depth.n_layers)):
        kind = model.feed_forward.kind
        raise RunError(f"table_parallel.size is {size} but model.feed_forward.kind is '{kind}', which has no tables; set it to 1")
    if size > model.d_model:
        raise RunError(f"table_parallel.size is {size}, more than model.d_model, {model.d_model} columns; set it to at most that")
