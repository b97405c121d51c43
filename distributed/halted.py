"""How far tokens went before they halted, and what that saved: counts of an interval, and the figures they make."""

from __future__ import annotations

import torch
from torch import Tensor

from model.accounting import executed_macs, macs
from model.config import ModelConfig
from model.moeut import ModelOutput


class HaltingCounter:
    """Sums over the micro-batches since the last `take`, in fp64; reads nothing back."""

    def __init__(self, config: ModelConfig, seq_len: int, device: torch.device) -> None:
        self._config, self._seq_len, self._device = config, seq_len, device
        self._whole = macs(config, seq_len).total
        self._reset()

    def add(self, output: ModelOutput, n_tokens: int) -> None:
        """Count one micro-batch of `n_tokens` in whole sequences."""
        if self._config.halting.kind == "none":
            return
        n_sequences = n_tokens // self._seq_len
        self._taken += sum(visit.queries for visit in output.computed) / self._config.depth.group
        self._tokens += n_tokens
        self._executed += executed_macs(self._config, output.computed, self._seq_len, n_sequences).total
        self._full += n_sequences * self._whole
        self._ponder += output.ponder_B.detach().sum()

    def take(self) -> Tensor:
        """[5], on the device: passes taken by all tokens, tokens, MACs executed, MACs without halting, the loss summed over sequences."""
        counts = torch.tensor([self._taken, self._tokens, self._executed, self._full, 0.0], dtype=torch.float64)
        sums = counts.to(self._device)
        sums[4] = self._ponder
        self._reset()
        return sums

    def _reset(self) -> None:
        self._taken = self._tokens = self._executed = self._full = 0.0
        self._ponder = torch.zeros((), dtype=torch.float64, device=self._device)


def halting_figures(sums: Tensor, seq_len: int) -> dict[str, float]:
    """Empty where no token can halt.

    `mean_passes`: over the group, that a token took; `saved_share`: of the multiply-accumulates of a forward without halting, head
    included; `loss`: what halting added to the training loss.
    """
    taken, tokens, executed, full, ponder = sums.tolist()
    if tokens == 0:
        return {}
    return {"mean_passes": taken / tokens, "saved_share": 1 - executed / full, "loss": ponder * seq_len / tokens}
