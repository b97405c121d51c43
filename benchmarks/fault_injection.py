"""A training function that strikes its own process at a chosen rank, step and phase: for tests, `bench faults` and `soak`.

The trainer has no hooks for this; its parts are wrapped from outside, in the process that is to be struck alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from distributed import collectives, trainer
from distributed.checkpoint import commit, snapshot, writing
from distributed.train_step import TrainStep

_CHECKPOINT_PARTS: dict[str, tuple[Any, str]] = {
    "checkpoint_copy": (snapshot.Snapshot, "settle"),
    "checkpoint_write": (writing, "write_part"),
    "manifest_rename": (commit, "_check_fence"),  # the manifest lies beside its name
}
PHASES = ("data", "forward", "all_to_all", "backward", "optimizer", *_CHECKPOINT_PARTS)


@dataclass(frozen=True)
class Fault:
    """`signal_name` (SIGKILL or SIGSTOP) to `rank` in `phase` of the first step from `step` on (from 0) that has that phase.

    `relative`: steps count from where the process began to train.
    """

    rank: int
    step: int
    phase: str
    signal_name: str = "SIGKILL"
    relative: bool = False


@contextmanager
def injected(fault: Fault | None, rank: int, before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Have the fault strike this process, if it is the rank's, while the block runs. `before` is called just before."""
    if fault is None or fault.rank != rank:
        yield
        return
    if fault.phase not in PHASES:
        raise ValueError(f"phase is '{fault.phase}'; choose one of {', '.join(PHASES)}")
    at = {"step": -1, "first": 0}

    def strike() -> None:
        if at["step"] - (at["first"] if fault.relative else 0) >= fault.step:
            before()
            os.kill(os.getpid(), getattr(signal, fault.signal_name))

    with _counting(at), _wrapped(fault.phase, strike):
        yield


@contextmanager
def _counting(at: dict[str, int]) -> Iterator[None]:
    """Keep the number of the step that is being read or trained in `at["step"]`, and of the first one in `at["first"]`."""
    timed, train_step = trainer.Trainer._timed, TrainStep.__call__

    def counted(self: trainer.Trainer, batches: Iterator[Any]) -> Iterator[Any]:
        at["step"] = at["first"] = self.step
        for number, batch in timed(self, batches):
            yield number, batch
            at["step"] = number + 1

    def noted(self: TrainStep, step: int, *arguments: Any) -> Any:
        at["step"] = step
        return train_step(self, step, *arguments)

    with mock.patch.object(trainer.Trainer, "_timed", counted), mock.patch.object(TrainStep, "__call__", noted):
        yield


def _wrapped(phase: str, strike: Callable[[], None]) -> Any:
    """A patch that strikes when the phase begins."""
    if phase == "data":
        return mock.patch.object(trainer.Trainer, "_micro_batches", _first(trainer.Trainer._micro_batches, strike))
    if phase == "forward":
        return mock.patch.object(TrainStep, "_forward", _first(TrainStep._forward, strike))
    if phase == "all_to_all":
        return mock.patch.object(collectives.dist, "all_to_all_single", _first(collectives.dist.all_to_all_single, strike))
    if phase in ("backward", "optimizer"):
        return mock.patch.object(trainer, "build_engine", _engine_that_strikes("backward" if phase == "backward" else "step", strike))
    place, name = _CHECKPOINT_PARTS[phase]
    return mock.patch.object(place, name, _first(getattr(place, name), strike))


def _first(function: Callable[..., Any], strike: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        strike()
        return function(*args, **kwargs)

    return wrapped


def _engine_that_strikes(method: str, strike: Callable[[], None]) -> Callable[..., Any]:
    build = trainer.build_engine

    def built(*args: Any) -> Any:
        engine = build(*args)
        setattr(engine, method, _first(getattr(engine, method), strike))
        return engine

    return built
