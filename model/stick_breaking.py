"""Stick-breaking halting of the Sparse Universal Transformer (arXiv 2310.07096; code shawntan/SUT @192cbd3).

With a_l the chance that gate l halts a token whose state is h_l, alpha_l = a_l * prod_{l' < l} (1 - a_l') is the chance that it halts
there, and `never` what is left of one. Queries read h, keys and values s = sum alpha_l h_l + never * h; the head reads s of the last
pass. A token whose `never` would fall below 1 - threshold halts for good: its last state takes all that was left, so weights always
sum to 1 and s stands still. (The code lets go of those last thousandths in its loss.)

Inside a group of several layers the same s is formed with the state between two of them, so with gates that never halt the model
is the one without halting.

Shape suffixes: B sequences, T tokens, N tokens asked, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.rows import wide_dtype
from model.halting import Passes
from model.halting_config import StickBreakingConfig
from model.initialise import Constant, Rules, Uniform
from model.skipping import Rows


class StickBreaking(nn.Module):
    """The gate: Linear, GELU, Dropout, Linear to (go on, halt), log-softmax. The last layer starts at zero: chances of one half."""

    def __init__(self, config: StickBreakingConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(d_model, d_model)
        self.choice = nn.Linear(d_model, 2, bias=False)

    def begin(self, x_BTD: Tensor, tokens_BT: Tensor, repeats: int, cached: bool) -> Passes:
        return Passes(StickBreakingState(self, x_BTD), x_BTD, cached)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of the chances to go on and to halt, [N] each, in at least float32."""
        hidden_ND = F.dropout(F.gelu(self.hidden(x_ND.to(self.hidden.weight.dtype))), self.config.dropout, self.training)
        logits_N2 = self.choice(hidden_ND)
        go_on_N, halt_N = logits_N2.to(wide_dtype(logits_N2.dtype)).log_softmax(dim=-1).unbind(-1)
        return go_on_N, halt_N

    def init_rules(self, scale: float) -> Rules:
        """The paper gives none for the first layer: torch's bounds for a linear layer."""
        bound = Uniform(self.hidden.in_features**-0.5)
        return {"hidden.weight": bound, "hidden.bias": bound, "choice.weight": Constant(0.0)}


class StickBreakingState:
    """Chances and weighted states of the tokens of one batch."""

    def __init__(self, module: StickBreaking, x_BTD: Tensor) -> None:
        self.module = module
        self.log_never_BT = x_BTD.new_zeros(x_BTD.shape[:2])
        self.never_BT = x_BTD.new_ones(x_BTD.shape[:2])
        self.halted_BTD = torch.zeros_like(x_BTD)
        self.depth_BT = x_BTD.new_zeros(x_BTD.shape[:2])
        self.passes = 0

    def gate(self, x_BTD: Tensor, before: Rows) -> tuple[Rows, int]:
        """No token halts before the first pass, and none is asked. One that halts at the gate after pass i + 1 has depth i."""
        self.passes += 1
        if self.passes == 1:
            return before, 0
        go_on_N, halt_N = self.module(before.take(x_BTD))
        log_before_N = before.take(self.log_never_BT)
        log_never_N = log_before_N + go_on_N
        goes_on_N = log_never_N.exp() >= 1 - self.module.config.threshold
        alpha_N = torch.where(goes_on_N, log_before_N + halt_N, log_before_N).exp()
        alpha_BT = before.put(torch.zeros_like(self.never_BT), alpha_N)
        self.log_never_BT = before.put(self.log_never_BT, log_never_N)
        self.never_BT = before.put(self.never_BT, log_never_N.exp() * goes_on_N)
        self.halted_BTD = self.halted_BTD + alpha_BT[..., None] * x_BTD
        self.depth_BT = self.depth_BT + (self.passes - 2) * alpha_BT
        return Rows(before.put(before.chosen_BT, goes_on_N)), len(before)

    def source(self, x_BTD: Tensor) -> Tensor:
        return self.halted_BTD + self.never_BT[..., None] * x_BTD

    def share(self) -> Tensor:
        """As the authors' code weighs a token in its regulariser, with a gradient to the gates."""
        return self.never_BT

    def leave(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """s of the last pass, and the weighted depth that is expected, in passes after the first."""
        depth_BT = self.depth_BT + (self.passes - 1) * self.never_BT
        return self.source(x_BTD), self.module.config.loss_weight * depth_BT
