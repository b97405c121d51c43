"""The part of a parameter's optimizer state that one rank owns: what engines give and checkpoints store."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from model.sharding import Box


@dataclass(frozen=True)
class Fragment:
    """Entries `start:stop` of the flattened `box` of parameter `name`.

    `tensors` are live one-dimensional views of length `stop - start`: "master" always, "exp_avg" and "exp_avg_sq" for
    AdamW. Writing into them changes the engine's state; `Engine.finish_load` then makes the parameters follow.
    """

    name: str
    box: Box
    start: int
    stop: int
    tensors: dict[str, Tensor]
