"""A training job under a seeded storm of faults: what strikes when, and what every rank runs.

The storm lies in the run folder (`storm.json`); group number n of the run, counted from its events, meets fault n. Every rank notes
the samples of its forwards, so that it can be shown afterwards that each step took its samples once.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from unittest import mock

import torch

from benchmarks.fault_injection import PHASES, Fault, injected
from cluster.events import read_events
from distributed import trainer
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.train_step import TrainStep

TARGET = "benchmarks.fault_storm:train"
STORM = "storm.json"


def draw_storm(n_faults: int, world: int, seed: int, least_steps: int, hang_share: float = 0.0) -> list[Fault]:
    """Faults of random rank and phase, `least_steps` to twice as many steps after each start; a share of them SIGSTOP."""
    draw = random.Random(seed)
    storm = []
    for number in range(n_faults):
        phase = PHASES[number % len(PHASES)] if number < len(PHASES) else draw.choice(PHASES)
        rank = 0 if phase == "manifest_rename" else draw.randrange(world)
        kind = "SIGSTOP" if draw.random() < hang_share else "SIGKILL"
        storm.append(Fault(rank, draw.randrange(least_steps, 2 * least_steps), phase, kind, relative=True))
    return storm


def write_storm(run: RunFolder, storm: list[Fault]) -> None:
    """Lay the storm into the run's folder, before its first start."""
    (run.path / STORM).write_text(json.dumps([asdict(fault) for fault in storm]))


def train(recipe: Recipe, run: RunFolder, resume: bool = False, branch_from: str | None = None) -> str:
    """`distributed.trainer.train` under this group's fault."""
    rank = int(os.environ["RANK"])
    group = sum(event.kind == "started" for event in read_events(run)) - 1
    storm = json.loads((run.path / STORM).read_text()) if (run.path / STORM).exists() else []
    fault = Fault(**storm[group]) if group < len(storm) else None
    with noted_samples(run, group, rank), injected(fault, rank):
        return trainer.train(recipe, run, resume, branch_from)


@contextmanager
def noted_samples(run: RunFolder, group: int, rank: int) -> Iterator[None]:
    """Write `[step, ids]` of every forward of this rank to a file of its own."""
    forward = TrainStep._forward
    folder = run.path / "samples"
    folder.mkdir(exist_ok=True)
    with (folder / f"{group:05d}-{rank:05d}.jsonl").open("w", buffering=1) as notes:

        def noting(self: TrainStep, step: int, ids: list[int], tokens_BT: torch.Tensor) -> Any:
            notes.write(json.dumps([step, ids]) + "\n")
            return forward(self, step, ids, tokens_BT)

        with mock.patch.object(TrainStep, "_forward", noting):
            yield


def samples_of(run: RunFolder) -> dict[int, list[int]]:
    """Ids of every step as the last group that took it noted them, in rank order."""
    found: dict[int, list[int]] = {}
    files = sorted((run.path / "samples").glob("*.jsonl"))
    for group in sorted({path.name.split("-")[0] for path in files}):
        steps: dict[int, list[int]] = defaultdict(list)
        for path in files:
            if path.name.startswith(f"{group}-"):
                for line in path.read_text().splitlines():
                    with_ids = _whole_line(line)
                    if with_ids:
                        steps[with_ids[0]] += with_ids[1]
        found |= steps
    return found


def _whole_line(line: str) -> list[Any] | None:
    """A line that a kill may have cut in half."""
    try:
        words: list[Any] = json.loads(line)
        return words
    except json.JSONDecodeError:
        return None
