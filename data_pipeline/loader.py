"""Steps of tokens, read ahead by torch's DataLoader workers.

What a step holds is decided by the caller (`micro_batches`), so that starting at a step is resuming at it: there is no
state to restore. Workers are started by a fork server: a fork of the trainer would copy the locks of its communication threads.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipeline.lifeline import Lifeline
from data_pipeline.windows import Windows

MicroBatches = Callable[[int], list[list[int]]]


@dataclass(frozen=True)
class MicroBatch:
    """Windows [b, T + 1] (int64; b may be 0) with their global ids, and what is wrong with those that could not be read."""

    ids: list[int]
    tokens_BT: torch.Tensor
    damaged: dict[int, str] = field(default_factory=dict)


class StepLoader:
    """Iterates over (step, micro-batches) from `start_step` to `stop_step`.

    `micro_batches(step)` gives this rank's global ids; it is called in this process, at most workers * prefetch steps ahead.
    `workers` 0 reads in this process. Iterate once; `close` (or leaving a `with` block) ends the workers. A window that cannot
    be read raises DataError, or with `skip_damaged` is left out of its micro-batch and named there.
    """

    def __init__(
        self,
        windows: Windows,
        micro_batches: MicroBatches,
        start_step: int,
        stop_step: int,
        workers: int = 1,
        prefetch: int = 4,
        skip_damaged: bool = False,
    ) -> None:
        self._loader = DataLoader(
            _Steps(windows, skip_damaged),
            sampler=_Plan(micro_batches, start_step, stop_step),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            multiprocessing_context=_fork_server() if workers else None,
            collate_fn=_unchanged,
            worker_init_fn=_Start(Lifeline()) if workers else None,
        )
        self._steps = range(start_step, stop_step)
        self._iterator: Iterator[list[_Read]] | None = None

    def __iter__(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        self._iterator = iter(self._loader)
        for step in self._steps:
            yield step, [MicroBatch(ids, torch.from_numpy(tokens), faults) for ids, tokens, faults in next(self._iterator)]
        self.close()

    def __len__(self) -> int:
        return len(self._steps)

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. Safe to call twice."""
        iterator, self._iterator = self._iterator, None
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


class _Plan(Sampler[list[list[int]]]):
    """The ids of step after step; a worker is handed ids, never the function that makes them."""

    def __init__(self, micro_batches: MicroBatches, start_step: int, stop_step: int) -> None:
        self._micro_batches = micro_batches
        self._steps = range(start_step, stop_step)

    def __iter__(self) -> Iterator[list[list[int]]]:
        for step in self._steps:
            yield self._micro_batches(step)

    def __len__(self) -> int:
        return len(self._steps)


_Read = tuple[list[int], np.ndarray, dict[int, str]]


class _Steps(Dataset[list[_Read]]):
    """Reads a step's windows. Arrays rather than tensors, which would each take a shared-memory file."""

    def __init__(self, windows: Windows, skip_damaged: bool) -> None:
        self._windows, self._skip_damaged = windows, skip_damaged

    def __getitem__(self, micro_batches: list[list[int]]) -> list[_Read]:
        if self._skip_damaged:
            return [self._windows.read_undamaged(ids) for ids in micro_batches]
        return [(ids, self._windows.read(ids), {}) for ids in micro_batches]


class _Start:
    """What a worker does first."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline

    def __call__(self, worker: int) -> None:
        self._lifeline.hold()


def _fork_server() -> Any:
    """The context whose server imports what every worker needs once, instead of each worker by itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.loader"])
    return context


def _unchanged(sample: list[np.ndarray]) -> list[np.ndarray]:
    return sample
