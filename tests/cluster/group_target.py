"""Training functions for tests of the worker group, run in real rank processes under Ray."""

from __future__ import annotations

import json
import os
import signal
import time

from data_pipeline.files import write_text
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

SHOWN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
)
DEADLINE_SECONDS = 60.0


def all_reduce(recipe: Recipe, run: RunFolder, resume: bool, branch_from: str | None) -> str:
    """Sum rank + 1 over the ranks; leaves the sum and the environment in the run's folder."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    total = torch.tensor(float(rank + 1))
    distributed.all_reduce(total)
    facts = {"sum": total.item(), "resume": resume, "branch_from": branch_from, **{name: os.environ[name] for name in SHOWN}}
    (run.path / f"facts-{rank}.json").write_text(json.dumps(facts))
    print(f"rank {rank} says hello", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    return "finished"


def one_dies(recipe: Recipe, run: RunFolder, resume: bool, branch_from: str | None) -> str:
    """Rank 1 is killed once rank 0 is at work; rank 0 would wait for a long time."""
    if os.environ["RANK"] == "1":
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (run.path / "pid-0").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        print("the last words of rank 1", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return until_stopped(recipe, run, resume, branch_from)


def user_error(recipe: Recipe, run: RunFolder, resume: bool, branch_from: str | None) -> str:
    """What a trainer does with a mistake it finds."""
    raise RunError("train.steps is wrong; mend it")


def until_stopped(recipe: Recipe, run: RunFolder, resume: bool, branch_from: str | None) -> str:
    """Write figures until asked to stop."""
    rank = int(os.environ["RANK"])
    write_text(run.path / f"pid-{rank}", str(os.getpid()))
    deadline = time.monotonic() + DEADLINE_SECONDS
    step = 0
    while not run.stop_path.exists() and time.monotonic() < deadline:
        step += 1
        if rank == 0:
            run.append_metrics({"step": step, "loss": 1.0 / step, "tokens_per_second": 100.0, "step_seconds": 0.1})
            run.write_state("running", step=step, steps=recipe.train.steps, loss=1.0 / step, tokens_per_second=100.0)
        time.sleep(0.1)
    return "stopped"
