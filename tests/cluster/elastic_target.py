"""A training function without a model for tests of the supervisor: counts steps in lock-step, saves, and has accidents on demand.

`run/accidents.json` maps "rank@step" to what befalls that rank before that step; each happens once, unless it is listed in
`run/always.json`. No torch: a start takes a fraction of a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from data_pipeline.files import write_text
from distributed import heartbeat
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder

STEPS = 12
SAVE_EVERY = 3
STEP_SECONDS = 0.1
DEADLINE_SECONDS = 60.0


def count(recipe: Recipe, run: RunFolder, resume: bool, branch_from: str | None) -> str:
    """Steps up to STEPS from the newest checkpoint; a line of rank 0 for each in steps.jsonl."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    saved = sorted(run.checkpoints.glob("step-*"))
    step = int(saved[-1].name[5:]) if resume and saved else 0
    heartbeat.position.begin(step, lambda: "forward")
    while step < STEPS:
        have_accident(run, rank, step)
        meet(run, rank, world, step)
        step = heartbeat.position.step = step + 1
        if rank == 0:
            note(run, step, world, recipe.expert_parallel.size)
        time.sleep(STEP_SECONDS)
        if step % SAVE_EVERY == 0:
            (run.checkpoints / f"step-{step:08d}").mkdir(exist_ok=True)
            if meet(run, rank, world, step + 1000):
                return "regroup" if step < STEPS else "finished"
    return "finished"


def note(run: RunFolder, step: int, world: int, expert_parallel: int) -> None:
    """A line of steps.jsonl, and the state that `status` shows."""
    with (run.path / "steps.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "world": world, "ep": expert_parallel, "time": time.time(), "pid": os.getpid()}) + "\n")
    run.write_state("running", step=step, steps=STEPS)


def meet(run: RunFolder, rank: int, world: int, place: int) -> bool:
    """Wait for all ranks of this start to come to `place`; whether rank 0 saw a request to regroup there."""
    folder = run.path / f"meet-{os.environ['MASTER_PORT']}-{place}"
    folder.mkdir(exist_ok=True)
    asked = rank == 0 and run.regroup_path.exists()
    write_text(folder / str(rank), str(int(asked)))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not all((folder / str(other)).exists() for other in range(world)):
        if time.monotonic() > deadline:
            raise RuntimeError("CollectiveError: a rank did not come")
        time.sleep(0.01)
    return (folder / "0").read_text() == "1"


def have_accident(run: RunFolder, rank: int, step: int) -> None:
    """What `accidents.json` has for this rank before this step, the first time it gets there."""
    kind = json.loads((run.path / "accidents.json").read_text()).get(f"{rank}@{step}")
    mark = run.path / f"happened-{rank}-{step}"
    if kind is None or (mark.exists() and not (run.path / "always").exists()):
        return
    write_text(mark, str(time.time()))
    if kind == "error":
        raise ValueError(f"no such tensor at 0x{os.getpid():x}")
    if kind == "mistake":
        raise RunError("train.lr is wrong; mend it")
    if kind in ("wait", "child"):
        if kind == "child":
            write_text(run.path / "child", str(subprocess.Popen(["sleep", str(DEADLINE_SECONDS)]).pid))
        time.sleep(DEADLINE_SECONDS)
    victim = {"actor": actor, "head": gcs_server, "driver": driver}.get(kind, os.getpid)
    os.kill(victim(), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
    time.sleep(DEADLINE_SECONDS)


def actor() -> int:
    """The Ray actor of this rank, which has its number in the name of its folder in memory (cluster/rank_process.py)."""
    return int(Path(os.environ[heartbeat.VARIABLE]).parent.name.split("-")[4])


def driver() -> int:
    """The process that started the private Ray of this rank: actor -> raylet -> driver."""
    return _parent(_parent(actor()))


def gcs_server() -> int:
    """The head of that Ray."""
    for entry in Path("/proc").glob("[0-9]*"):
        if "gcs_server" in _words(entry) and _parent(int(entry.name)) == driver():
            return int(entry.name)
    raise RuntimeError("no gcs_server found")


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _words(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
