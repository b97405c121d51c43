"""Adaptive computation time of the Universal Transformer (arXiv 1807.03819; tensorflow/tensor2tensor @0405ed1).

Before a pass a gate reads p from every token that still runs. While the sum of its p stays at or below theta = 1 - epsilon, the state
that the pass makes weighs p; in the pass that brings the sum above theta it weighs what is left of one, and the token halts. The last
pass halts every token that still runs, so weights sum to 1 (the released code leaves the rest out). A token that halted keeps its
state, as in the paper; the released code goes on to change what others attend to. It also adds a signal of the step to every state
before a pass; here `depth.per_visit` embeddings would part keys that are kept, so there is none.

Shape suffixes: B sequences, T tokens, N tokens asked, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.rows import wide_dtype
from model.halting import Passes
from model.halting_config import ActConfig
from model.initialise import Constant, Rules, Uniform
from model.skipping import Rows


class Act(nn.Module):
    """The gate: sigmoid(w x + b), b starting at 1."""

    def __init__(self, config: ActConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(d_model, 1)

    def begin(self, x_BTD: Tensor, tokens_BT: Tensor, repeats: int, cached: bool) -> Passes:
        return Passes(ActState(self, x_BTD, repeats), x_BTD, cached)

    def forward(self, x_ND: Tensor) -> Tensor:
        """p of every token [N], in at least float32."""
        logit_N = self.linear(x_ND.to(self.linear.weight.dtype)).squeeze(-1)
        return logit_N.to(wide_dtype(logit_N.dtype)).sigmoid()

    def init_rules(self, scale: float) -> Rules:
        return {"linear.weight": Uniform(self.linear.in_features**-0.5), "linear.bias": Constant(1.0)}


class ActState:
    """Sums of gates and weighted states of the tokens of one batch."""

    def __init__(self, module: Act, x_BTD: Tensor, repeats: int) -> None:
        self.module, self.passes_left = module, repeats
        self.running_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
        self.sum_BT = x_BTD.new_zeros(x_BTD.shape[:2])
        self.ponder_BT = x_BTD.new_zeros(x_BTD.shape[:2])
        self.weight_BT = x_BTD.new_zeros(x_BTD.shape[:2])
        self.output_BTD = torch.zeros_like(x_BTD)

    def gate(self, x_BTD: Tensor, before: Rows) -> tuple[Rows, int]:
        """`ponder_BT` counts passes taken, the halting one included, and adds the remainder."""
        self._settle(x_BTD)
        self.passes_left -= 1
        running = Rows(self.running_BT)
        p_N, sum_N = self.module(running.take(x_BTD)), running.take(self.sum_BT)
        goes_on_N = (sum_N + p_N <= 1 - self.module.config.epsilon) & (self.passes_left > 0)
        remainder_N = torch.where(goes_on_N, 0.0, 1 - sum_N)
        self.weight_BT = running.put(torch.zeros_like(self.sum_BT), torch.where(goes_on_N, p_N, remainder_N))
        self.sum_BT = self.sum_BT + self.weight_BT
        self.ponder_BT = running.put(self.ponder_BT, running.take(self.ponder_BT) + 1 + remainder_N)
        self.running_BT = running.put(self.running_BT, goes_on_N)
        return running, len(running)

    def source(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def share(self) -> None:
        return None

    def leave(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the weighted passes taken plus remainder."""
        self._settle(x_BTD)
        return self.output_BTD, self.module.config.loss_weight * self.ponder_BT

    def _settle(self, x_BTD: Tensor) -> None:
        """Weigh the states that the last pass made; before the first there is no weight."""
        kept = 1.0 if self.module.config.output == "accumulated" else 1 - self.weight_BT[..., None]
        self.output_BTD = self.output_BTD * kept + self.weight_BT[..., None] * x_BTD
