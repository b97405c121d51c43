"""What ranks run for test_checkpoint_saver.py."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist
from engine_work import one_step, start
from hooked_storage import HookedStorage
from small_run import recipe_values
from torch import float32

from distributed import persistence, trainer
from distributed.checkpoint import Meta, Saver, list_checkpoints
from distributed.checkpoint.local_storage import LocalStorage
from distributed.collectives import recorded_order
from distributed.errors import RunError
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder

META = Meta(applied_steps=1, tokens=9)


def collectives_of_saves(folder: str) -> dict[str, Any]:
    """Train and save twice; the collectives issued, and the threads that issued them."""
    engine, topology, _ = start(2)
    saver = Saver(LocalStorage(Path(folder)), topology, fence=1)
    threads: set[str] = set()
    reduce = dist.all_reduce

    def watched(*arguments: Any, **options: Any) -> Any:
        threads.add(threading.current_thread().name)
        return reduce(*arguments, **options)

    dist.all_reduce = watched
    try:
        with recorded_order() as order:
            for step in (1, 2):
                saver.settle()
                one_step(engine, topology, step, 1, 1e-2, float32)
                saver.save(step, engine.fragments(), {}, META)
                saver.poll()
            saver.close()
    finally:
        dist.all_reduce = reduce
    return {"order": list(order), "threads": sorted(threads), "newest": saver.newest}


def rank_1_without_room(folder: str, mark_too: bool) -> dict[str, Any]:
    """Four saves, of which the second and the last fail on rank 1."""
    engine, topology, _ = start(1)
    storage = HookedStorage(LocalStorage(Path(folder)))
    if topology.rank == 1:
        storage.full_for = lambda name: ("step-00000002" in name or "step-00000004" in name) and (mark_too or "rank-" in name)
    said: list[str] = []
    saver = Saver(storage, topology, fence=1, report=said.append)
    for step in (1, 2, 3):
        saver.settle()
        one_step(engine, topology, step, 1, 1e-2, float32)
        saver.save(step, engine.fragments(), {}, META)
    saver.finish()
    result = {"events": list(saver.events), "newest": saver.newest, "steps": list(list_checkpoints(storage)), "names": storage.names()}
    saver.save(4, engine.fragments(), {}, META)
    try:
        saver.close()
        raised = False
    except RunError:
        raised = True
    return {**result, "said": said, "raised": raised}


def restore_in_own_memory(home: str) -> str:
    """The message of a start whose checkpoints would lie in the memory of each process."""
    engine, topology, model = start(1)
    recipe = check_recipe(recipe_values(Path(home)) | {"checkpoint": {"address": "memory://runs"}}, "test")
    see = persistence.sees_fence
    persistence.sees_fence = lambda storage, number: see(storage, number, seconds=0.0)
    try:
        persistence.Persistence(recipe, RunFolder(Path(home) / "small"), topology, engine, model.boxes(), {}, "").restore(False, None)
    except RunError as fault:
        return str(fault)
    finally:
        persistence.sees_fence = see
    return "restored"


def train_while_a_save_is_held(home: str, values: dict[str, Any]) -> str:
    """A run whose writer does not begin with checkpoint 2 before the step after it has changed the state."""
    os.environ["MOOTRON_HOME"] = home
    recipe = check_recipe(values, "test")
    run = RunFolder.named(recipe.name)
    run.create(recipe)
    changed, n_steps = threading.Event(), iter(range(100))
    build = trainer.build_engine

    def hold(operation: str, name: str) -> None:
        if operation == "write" and "step-00000002/rank-" in name:
            assert changed.wait(60), "no step came after the save"

    def built(*arguments: Any) -> Any:
        engine = build(*arguments)
        step = engine.step

        def counted(*rate: Any) -> Any:
            report = step(*rate)
            if next(n_steps) == 2:
                changed.set()
            return report

        engine.step = counted  # type: ignore[method-assign]
        return engine

    held = HookedStorage(LocalStorage(run.checkpoints), hold if recipe.checkpoint.asynchronous else lambda operation, name: None)
    with mock.patch.object(trainer, "build_engine", built), mock.patch.object(persistence, "storage_of", lambda recipe, run: held):
        return trainer.train(recipe, run)
