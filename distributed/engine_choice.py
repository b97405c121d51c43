"""Which engine a run gets. Asked where a run is planned too, so it imports neither torch nor DeepSpeed."""

from __future__ import annotations

import importlib.util
from typing import Literal

from distributed.errors import RunError
from distributed.train_config import TrainConfig


def choose_engine(train: TrainConfig, world: int, connected: bool) -> Literal["plain", "deepspeed"]:
    """The engine that `train.engine` names; `auto` is DeepSpeed where it is installed and ranks are connected.

    Raises:
        RunError: this engine cannot train with that precision or in that world.
    """
    installed = importlib.util.find_spec("deepspeed") is not None
    wide = train.precision == "fp64"
    if train.engine == "plain" or (train.engine == "auto" and (wide or not installed or not connected)):
        if world > 1:
            reason = "fp64 needs the plain engine" if wide else "the plain engine serves one" if installed else "deepspeed is not installed"
            raise RunError(f"{world} workers need train.engine=deepspeed, but {reason}; set cluster.workers=1 or change that")
        return "plain"
    if not installed:
        raise RunError("train.engine is 'deepspeed', which is not installed; install deepspeed, or set train.engine=plain for one worker")
    if wide:
        raise RunError("train.precision is 'fp64' but DeepSpeed keeps fp32 masters; set train.engine=plain with cluster.workers=1")
    return "deepspeed"
