"""What makes one visit of a repeated layer differ from another beside its routers and norms.

Shape suffixes: B sequences, T tokens, D model width, R repeats.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.depth_config import DepthConfig
from model.initialise import Constant, Rules
from model.visit import Visit


class DepthSwitches(nn.Module):
    """Depth embedding `embedding` [R, D] and learned residual scale `residual_scale` [R], where `depth.per_visit` names them."""

    def __init__(self, depth: DepthConfig, d_model: int) -> None:
        super().__init__()
        repeats = depth.most_repeats
        self.scale, self.start = depth.residual_scale, residual_scale(depth.residual_scale, depth.repeats)
        self.embedding = nn.Parameter(torch.empty(repeats, d_model)) if "embedding" in depth.per_visit else None
        self.residual_scale = nn.Parameter(torch.empty(repeats)) if "residual_scale" in depth.per_visit else None

    def enter(self, x_BTD: Tensor, visit: Visit) -> Tensor:
        """The stream as the layer reads and continues it."""
        return x_BTD if self.embedding is None else x_BTD + self.embedding[visit.repeat].to(x_BTD.dtype)

    def contribution(self, y_BTD: Tensor, visit: Visit) -> Tensor:
        """What is added to the stream of a half-visit's result."""
        if self.residual_scale is not None:
            return y_BTD * self.residual_scale[visit.repeat].to(y_BTD.dtype)
        scale = residual_scale(self.scale, visit.repeats)
        return y_BTD if scale == 1.0 else y_BTD * scale

    def init_rules(self, scale: float) -> Rules:
        return {"embedding": Constant(0.0), "residual_scale": Constant(self.start)}


def residual_scale(scale: float | str, repeats: int) -> float:
    """The number that `depth.residual_scale` stands for in a pass of so many repeats."""
    return scale if isinstance(scale, float) else {"1/R": 1 / repeats, "1/sqrt(R)": repeats**-0.5}[scale]
