"""What `bench checkpoint` saves: a rank's part of a training state, a step that uses all of it, and four ways to save it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from distributed.checkpoint import Meta, Saver, checkpoint_path, load, newest
from distributed.checkpoint.local_storage import LocalStorage
from distributed.fragment import Fragment
from distributed.topology import Topology
from model.sharding import Box

STATES = ("master", "exp_avg", "exp_avg_sq")
TENSORS = 24


class State:
    """Masters and both moments of `parameters` parameters, cut in equal parts over the ranks: in 24 tensors a state, as a model has."""

    def __init__(self, parameters: int, topology: Topology, passes: int) -> None:
        self.length = parameters // (TENSORS * topology.world)
        self.topology = topology
        generator = torch.Generator().manual_seed(topology.rank)
        self.tensors = {
            f"layer{number}": {state: torch.rand(self.length, generator=generator) for state in STATES} for number in range(TENSORS)
        }
        self._passes = passes
        self._matrix, self._vector = torch.rand(4096, 4096), torch.rand(4096)
        self._gradient = torch.rand(1 << 18)

    @property
    def bytes(self) -> int:
        """Of all ranks."""
        return 4 * len(STATES) * TENSORS * self.length * self.topology.world

    def step(self, before_update: Callable[[], None] = lambda: None) -> None:
        """Passes over a matrix larger than the caches, an all-reduce, and an update in place of every entry.

        All of it is bound by the memory that the writer reads too, so nothing that a save takes is hidden. Products of small
        matrices would be, and on a shared machine their time changes by half from one second to the next.
        """
        for _ in range(self._passes):
            torch.mv(self._matrix, self._vector)
        dist.all_reduce(self._gradient)
        self._gradient.mul_(0.5)
        before_update()
        for states in self.tensors.values():
            states["exp_avg"].mul_(0.9)
            states["exp_avg_sq"].mul_(0.999)
            states["master"].add_(states["exp_avg"], alpha=-1e-4)

    def fragments(self) -> list[Fragment]:
        """For our checkpoints: this rank's part of every tensor."""
        box = Box.whole((self.length * self.topology.world,))
        start = self.length * self.topology.rank
        return [Fragment(name, box, start, start + self.length, states) for name, states in self.tensors.items()]

    def boxes(self) -> dict[str, Box]:
        """Where the tensors lie in the whole."""
        return {name: Box.whole((self.length * self.topology.world,)) for name in self.tensors}

    def sharded(self) -> dict[str, DTensor]:
        """For torch's checkpoints: the same tensors, as DTensors sharded over the ranks."""
        mesh = init_device_mesh("cpu", (self.topology.world,))
        return {
            f"{state}.{name}": DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False)
            for name, states in self.tensors.items()
            for state, tensor in states.items()
        }


class Ours:
    """Mootron's saves, into a folder of their own."""

    def __init__(self, state: State, folder: Path, asynchronous: bool) -> None:
        self._state, self.folder = state, folder
        self._saver = Saver(LocalStorage(folder), state.topology, fence=1, asynchronous=asynchronous)
        self.step = 0

    def save(self) -> None:
        """What the training thread does."""
        self.step += 1
        self._saver.save(self.step, self._state.fragments(), {}, Meta(applied_steps=self.step, tokens=0))

    def settle(self) -> None:
        """What the training thread does before it changes the state."""
        self._saver.settle()

    def finish(self) -> None:
        """Wait for what is in the background."""
        self._saver.close()

    def load(self) -> None:
        """Find the newest, verify its digests, fill the state."""
        found = newest(LocalStorage(self.folder), self._state.topology)
        assert found is not None
        load(found, self._state.fragments(), self._state.boxes(), {}, self._state.topology)

    @property
    def last(self) -> Path:
        """The last checkpoint's folder."""
        return checkpoint_path(self.folder, self.step)


class Torchs:
    """torch.distributed.checkpoint with files flushed, as its defaults are; a stager that keeps its host copies between saves."""

    def __init__(self, state: State, folder: Path, asynchronous: bool) -> None:
        self._state, self.folder, self._asynchronous = state, folder, asynchronous
        self._group: Any = dist.new_group(backend="gloo")  # its collectives run beside training: not in training's group
        self._stager = dcp.staging.DefaultStager(dcp.staging.StagingOptions(False, False, False, False)) if asynchronous else None
        self._future: Any = None
        self.step = 0

    def save(self) -> None:
        """What the training thread does."""
        self.step += 1
        writer = dcp.FileSystemWriter(self.last)
        if self._asynchronous:
            self._future = dcp.async_save(
                self._state.sharded(), storage_writer=writer, process_group=self._group, async_stager=self._stager
            )
        else:
            dcp.save(self._state.sharded(), storage_writer=writer, process_group=self._group)

    def settle(self) -> None:
        """The whole copy was made in `save`."""

    def finish(self) -> None:
        """Wait for what is in the background."""
        if self._future is not None:
            self._future.result()
            self._future = None

    def load(self) -> None:
        """Fill the state from the last checkpoint; nothing is verified."""
        dcp.load(self._state.sharded(), checkpoint_id=self.last, process_group=self._group)

    @property
    def last(self) -> Path:
        """The last checkpoint's folder."""
        return self.folder / f"step-{self.step}"


def clear(saves: Ours | Torchs) -> None:
    """Delete the last checkpoint."""
    shutil.rmtree(saves.last)


WAYS: dict[str, Callable[[State, Path], Ours | Torchs]] = {
    "mootron": lambda state, folder: Ours(state, folder, asynchronous=False),
    "mootron async": lambda state, folder: Ours(state, folder, asynchronous=True),
    "dcp": lambda state, folder: Torchs(state, folder, asynchronous=False),
    "dcp async": lambda state, folder: Torchs(state, folder, asynchronous=True),
}
