"""Global tensors put together from ranks' fragments, for comparisons over layouts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def whole(results: list[dict[str, Any]], state: str = "master") -> dict[str, Tensor]:
    """Every global tensor of `state`; fails unless each entry belongs to exactly one rank.

    Args:
        results: a rank's "boxes" and its fragments ("state") each.
    """
    tensors = {name: torch.full(box.global_shape, torch.nan) for name, box in results[0]["boxes"].items()}
    for result in results:
        for fragment in result["state"]:
            name, box = fragment["name"], fragment["box"]
            entries = torch.arange(tensors[name].numel()).view(box.global_shape)[box.index].flatten()[fragment["start"] : fragment["stop"]]
            assert tensors[name].view(-1)[entries].isnan().all(), f"{name} has entries owned twice"
            tensors[name].view(-1)[entries] = fragment[state].to(tensors[name].dtype)
    for name, tensor in tensors.items():
        assert not tensor.isnan().any(), f"{name} has entries without an owner"
    return tensors


def worst(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest relative difference over tensors: norm of the difference over the norm; where all should be zero, the norm."""
    assert left.keys() == right.keys()
    pairs = [(left[name].double(), right[name].double()) for name in left]
    return max(float((mine - theirs).norm() / theirs.norm()) if theirs.any() else float(mine.norm()) for mine, theirs in pairs)
