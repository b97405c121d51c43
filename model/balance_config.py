"""How the use of experts is kept even: which regulariser or mechanism, and over what its statistics are taken.

Symbols: E experts, p softmax of the router's logits, f shares of the routes; -H(e) + H(e|x) is minus the mutual information of
experts and tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field

from model.slot_config import Strict

Scope = Literal["sequence", "step", "micro_batch"]


class ScopedBalance(Strict):
    """Base of those that take statistics of routing."""

    kind: str
    scope: Scope
    """Over what statistics are taken, always over all visits of a distinct layer. `sequence`: one sequence. `step`: all micro-batches and
    ranks of an optimizer step, exactly; with more than one of them every step begins with a second forward, without gradients, over all
    its micro-batches. `micro_batch`: what one rank has in one forward, so the function trained depends on how the batch is cut.
    """


class EntropyBalance(ScopedBalance):
    """Minus the entropy of the mean softmax, sum_e p ln p. `sequence`: arXiv 2405.16039 eq. 4; the batch forms: arXiv 2310.10837
    eq. 20-21.
    """

    kind: Literal["entropy"] = "entropy"
    scope: Scope = "sequence"


class SwitchBalance(ScopedBalance):
    """E * sum_e f_e p_e with shares f of routes and mean softmax p: 1 where both are even. Switch Transformer (arXiv 2101.03961 eq. 4-6),
    published with scope `micro_batch`.
    """

    kind: Literal["switch"] = "switch"
    scope: Scope = "step"


class MIMBalance(ScopedBalance):
    """Mutual information maximised (SUT, arXiv 2310.07096). Published with scope `micro_batch`."""

    kind: Literal["mim"] = "mim"
    mim: Literal["paper", "released"] = "paper"
    """`paper`: -H(e) + H(e|x), the entropies of the mean softmax and, in the mean, of a token's. `released`: H(e) + H(e|x), the sign of
    the authors' code (shawntan/SUT @192cbd3), whose minimum is collapse; runs of it need this form."""
    scope: Scope = "step"


class BiasBalance(Strict):
    """No regulariser: a bias an expert, added to scores for the choice alone and moved towards even loads (arXiv 2408.15664)."""

    kind: Literal["bias"] = "bias"
    rate: float = Field(default=1e-3, gt=0.0)
    """How far a bias is moved, once a step: `rate * sign(mean load - load)`."""
    scope: Literal["step"] = "step"
    """Loads are exact counts over the micro-batches and ranks of a step: one small collective."""


class NoBalance(Strict):
    """Nothing."""

    kind: Literal["none"] = "none"


Regularised: TypeAlias = EntropyBalance | SwitchBalance | MIMBalance
Balance = Annotated[EntropyBalance | SwitchBalance | MIMBalance | BiasBalance | NoBalance, Field(discriminator="kind")]


class BalanceTerm(NamedTuple):
    """A router's part of the loss."""

    weight: float
    balance: Regularised
