"""How tokens and the experts they chose meet: the seam between a model and where its experts live.

A model never asks for a rank. It hands tokens and their choices to an `Exchange`, runs the experts it was given, and
hands the results back. `LocalExchange` is the form of one process: every expert is here and nothing moves.
`distributed.exchange` moves tokens to the experts' owners, `distributed.weight_exchange` brings the experts to the tokens.

Shape suffixes: T tokens of this rank, K experts a token chose, S rows received, Q routes (row, expert) to compute here,
D model width, E experts in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class ExpertWork:
    """Rows for the experts of this rank: route q sends row `row_Q[q]` to local expert `expert_Q[q]`.

    `weight_Q` is differentiable; `expert_Q` counts from the first expert served here. Routes are in the order of their rows.
    """

    x_SD: Tensor
    row_Q: Tensor
    expert_Q: Tensor
    weight_Q: Tensor


class Handle(Protocol):
    """Something on its way. `wait` returns it, and must be called exactly once, in the order of issue."""

    def wait(self) -> Any: ...


class Exchange(Protocol):
    """Brings tokens and experts together, and gives one summed vector a token back."""

    parts: int
    """In how many parts a batch is cut so that the dispatch of one runs under the experts of another."""

    size: int
    """How many ranks share the experts; above 1 every bank counts as partitioned, even where one rank owns all of it."""

    def owned(self, n_experts: int) -> range:
        """Global numbers of the experts that live on this rank (may be empty)."""
        ...

    def served(self, n_experts: int) -> range:
        """Global numbers of the experts that routes dispatched to this rank may name."""
        ...

    def gather(self, weight: Tensor, n_experts: int) -> Tensor:
        """The matrices of the experts served here, from the parameter that holds those owned here; differentiable."""
        ...

    def before_backward(self, last: bool) -> None:
        """A backward is about to run; whether it is the last one before the weights change."""
        ...

    def weights_changed(self) -> None:
        """The optimizer steps, or a checkpoint was loaded: copies of the weights are no longer valid."""
        ...

    def dispatch(self, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, n_experts: int, record: dict[str, Any]) -> Handle:
        """Send every token once to each rank that owns one of its experts; `wait()` gives `ExpertWork`.

        Args:
            x_TD: tokens; expert_TK: int64 global expert numbers; weight_TK: their weights, differentiable.
            n_experts: experts in all.
            record: what this call learnt that a recomputation must not learn again (split sizes). Filled when
                empty, obeyed when not.
        """
        ...

    def combine(self, y_SD: Tensor, dispatched: Any) -> Handle:
        """Send the results of `dispatched`'s rows home; `wait()` gives y_TD, summed over the ranks.

        A result may have another width than the row it answers (SwitchHead's value bank: D in, H*d_head out).
        """
        ...


class LocalExchange:
    """All experts in this process: the identity form of `Exchange`."""

    parts = 1
    size = 1

    def owned(self, n_experts: int) -> range:
        return range(n_experts)

    def served(self, n_experts: int) -> range:
        return self.owned(n_experts)

    def gather(self, weight: Tensor, n_experts: int) -> Tensor:
        return weight

    def before_backward(self, last: bool) -> None:
        pass

    def weights_changed(self) -> None:
        pass

    def dispatch(self, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, n_experts: int, record: dict[str, Any]) -> _Here:
        n_tokens, top_k = expert_TK.shape
        row_Q = torch.arange(n_tokens, device=x_TD.device).repeat_interleave(top_k)
        return _Here(ExpertWork(x_TD, row_Q, expert_TK.flatten(), weight_TK.flatten()))

    def combine(self, y_SD: Tensor, dispatched: Any) -> _Here:
        return _Here(y_SD)


@dataclass
class _Here:
    value: Any

    def wait(self) -> Any:
        return self.value


def run_experts(
    exchange: Exchange,
    bank: Callable[[ExpertWork], Tensor],
    x_TD: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    n_experts: int,
    record: dict[str, Any],
) -> Tensor:
    """y_TD = sum over a token's experts of weight * expert(x), wherever the experts are.

    The batch is cut into `exchange.parts`: all dispatches are issued first, and while the experts work on one part the
    next one is on its way. `record` is the visit's record; each part keeps its own entry in it.
    """
    sent = []
    for number, (start, stop) in enumerate(_bounds(x_TD.shape[0], exchange.parts)):
        part_record = record.setdefault(f"part_{number}", {})
        sent.append(exchange.dispatch(x_TD[start:stop], expert_TK[start:stop], weight_TK[start:stop], n_experts, part_record))
    returned = [exchange.combine(bank(handle.wait()), handle) for handle in sent]
    answers = [handle.wait() for handle in returned]
    return answers[0] if len(answers) == 1 else torch.cat(answers)


def _bounds(n_tokens: int, parts: int) -> list[tuple[int, int]]:
    cuts = [n_tokens * part // parts for part in range(parts + 1)]
    return list(pairwise(cuts))
