"""`router.replay`: write down every expert choice of a run, and make another run take them.

Top-K is a discontinuity: a different order of summation alone flips choices within a few steps, and then losses of
correct runs part. With choices replayed, runs of any layout agree to rounding. A choice belongs to (step, sample id,
visit, name), so the replaying run may have other ranks, expert parallelism and micro-batches.

    <run>/choices/step-00000012/00001-of-00002.0000.safetensors      rank 1 of 2, its first micro-batch of the step
        ids                          [B] sample ids
        visit-0003/feed_forward      [B, T, K] the smallest of uint8, int16, int32
        visit-0003/attention.value   [B, T, H, K]

Shape suffixes: B sequences, T tokens a sequence, N = B*T, K experts chosen, H heads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.run_folder import RunFolder
from distributed.start_rules import recorded_choices
from distributed.topology import Topology

Records = list[dict[str, Any]]


class Replay(Protocol):
    """What a trainer asks before a forward and tells after it."""

    def records(self, step: int, ids: list[int], made: Sequence[bool]) -> Records | None:
        """Choices that the forward over samples `ids` must take; None lets the routers choose.

        `made` says of every visit that the model can make whether this step makes it.
        """
        ...

    def keep(self, step: int, ids: list[int], records: Records) -> None:
        """The choices that the forward over `ids` took."""
        ...


def open_replay(recipe: Recipe, run: RunFolder, topology: Topology) -> Replay:
    """The replay that a recipe asks for.

    Raises:
        RunError: the run whose choices are wanted is missing, recorded none, or routes otherwise.
    """
    if recipe.router.replay == "record":
        return ChoiceWriter(run.choices, topology.rank, topology.world)
    recorded = recorded_choices(recipe)
    return NoReplay() if recorded is None else ChoiceReader(recorded.choices, topology.device)


class NoReplay:
    """Routers choose, nothing is kept."""

    def records(self, step: int, ids: list[int], made: Sequence[bool]) -> Records | None:
        return None

    def keep(self, step: int, ids: list[int], records: Records) -> None:
        return None


class ChoiceWriter:
    """Writes a file a micro-batch. A step run again, after a resume in any layout, replaces what it wrote before."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self._folder, self._rank, self._world = folder, rank, world
        self._step, self._micro_batch = -1, 0
        self._made: list[bool] = []

    def records(self, step: int, ids: list[int], made: Sequence[bool]) -> Records | None:
        self._made = list(made)
        return None

    def keep(self, step: int, ids: list[int], records: Records) -> None:
        """Write the choices of samples `ids`, which are [N, ...] with the sequences' tokens one after the other."""
        folder = _step_folder(self._folder, step)
        if step != self._step:
            self._step, self._micro_batch = step, 0
            folder.mkdir(parents=True, exist_ok=True)
            self._forget(folder)
        if ids:
            made = self._made or [bool(record) for record in records]
            tensors = {"ids": torch.tensor(ids, dtype=torch.int64), "made": torch.tensor(made)}
            for visit, record in enumerate(records):
                choices = {name: choice for name, choice in record.items() if isinstance(choice, Tensor)}
                for name, choice in choices.items():
                    tensors[f"visit-{visit:04d}/{name}"] = _pack(choice.unflatten(0, (len(ids), -1)))
            path = folder / f"{self._rank:05d}-of-{self._world:05d}.{self._micro_batch:04d}.safetensors"
            beside = path.with_suffix(".part")
            save_file(tensors, beside)
            os.replace(beside, path)
        self._micro_batch += 1

    def _forget(self, folder: Path) -> None:
        """Remove this rank's files and those of other worlds; ranks of this world look after their own.

        By the pattern of the names: safetensors writes under a name of its own first, and another rank may be doing so now.
        """
        mine, world = f"{self._rank:05d}-", f"-of-{self._world:05d}."
        for path in folder.glob("?????-of-?????.*"):
            if path.name.startswith(mine) or world not in path.name:
                path.unlink(missing_ok=True)


class ChoiceReader:
    """Gives the choices of any samples of a step, whichever ranks and micro-batches recorded them."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._step = -1
        self._files: list[dict[str, Tensor]] = []
        self._place: dict[int, tuple[int, int]] = {}
        self._keys: list[tuple[int, str, str]] = []
        self._made: list[bool] = []

    def records(self, step: int, ids: list[int], made: Sequence[bool]) -> Records | None:
        """One dict of int64 choices [N, ...] a visit, on the device; empty for visits that are not made.

        Raises:
            RunError: the step or a sample of it was not recorded, or with other visits.
        """
        if step != self._step:
            self._read(step)
        if self._made != list(made):
            counts = f"step {step} was recorded with {sum(self._made)} visits, the model makes {sum(made)}"
            raise RunError(f"router.choices: {counts}; give both runs the same model.depth and, where repeats are drawn, the same seed")
        missing = [sample for sample in ids if sample not in self._place]
        if missing:
            raise RunError(f"router.choices: step {step} has no choices for sample {missing[0]} in {self._folder}; record that step again")
        found: Records = [{} for _ in made]
        for visit, name, key in self._keys:
            found[visit][name] = self._gather(key, ids)
        return found

    def keep(self, step: int, ids: list[int], records: Records) -> None:
        return None

    def _read(self, step: int) -> None:
        paths = sorted(_step_folder(self._folder, step).glob("*.safetensors"))
        if not paths:
            raise RunError(f"router.choices: step {step} was not recorded in {self._folder}; record a run that is long enough")
        try:
            self._files = [load_file(path) for path in paths]
        except SafetensorError as fault:
            raise RunError(f"router.choices: a file of step {step} in {self._folder} is damaged ({fault}); record it again") from None
        self._place = {sample: (file, row) for file, held in enumerate(self._files) for row, sample in enumerate(held["ids"].tolist())}
        self._keys = [_visit_and_name(key) for key in self._files[0] if key not in ("ids", "made")]
        if "made" not in self._files[0]:
            raise RunError(f"router.choices: {self._folder} was recorded by an earlier version; record the run again")
        self._made = self._files[0]["made"].tolist()
        self._step = step

    def _gather(self, key: str, ids: list[int]) -> Tensor:
        some = self._files[0][key]
        parts = [self._files[file][key][row] for file, row in (self._place[sample] for sample in ids)]
        choice_BT = torch.stack(parts) if parts else some.new_empty(0, *some.shape[1:])
        return choice_BT.flatten(0, 1).to(self._device, torch.int64)


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _visit_and_name(key: str) -> tuple[int, str, str]:
    visit, _, name = key.removeprefix("visit-").partition("/")
    return int(visit), name, key


def _pack(choice: Tensor) -> Tensor:
    """The same numbers on the host in the smallest type that holds them."""
    largest = int(choice.max()) if choice.numel() else 0
    dtype = torch.uint8 if largest < 2**8 else torch.int16 if largest < 2**15 else torch.int32
    return choice.to("cpu", dtype).contiguous()
