"""How the use of experts is kept even: which regulariser or mechanism, and over what its statistics are taken.

Symbols: E experts, p softmax of the router's logits, f shares of the routes; -H(e) + H(e|x) is minus the mutual information of
experts and tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field

from model.slot_config import Strict

Scope = Literal["sequence", "step", "micro_batch"]
"""Over what a statistic of routing is taken, always over all visits of a distinct layer.

`sequence`: one sequence. `step`: all micro-batches and ranks of an optimizer step, exactly; with more than one of them every step
begins with a second forward, without gradients, over all its micro-batches. `micro_batch`: what one rank has in one forward, so the
function trained depends on how the batch is cut.
"""


class EntropyBalance(Strict):
    """sum_e p ln p of the mean softmax. `sequence`: arXiv 2405.16039 eq. 4; the batch forms: arXiv 2310.10837 eq. 20-21."""

    kind: Literal["entropy"] = "entropy"
    scope: Scope = "sequence"


class SwitchBalance(Strict):
    """E * sum_e f_e p_e (Switch Transformer, arXiv 2101.03961 eq. 4-6): 1 where both are even. Published with scope `micro_batch`."""

    kind: Literal["switch"] = "switch"
    scope: Scope = "step"


class MIMBalance(Strict):
    """Mutual information maximised (SUT, arXiv 2310.07096). `paper`: -H(e) + H(e|x). `released`: H(e) + H(e|x), the sign of the
    authors' code (shawntan/SUT @192cbd3), whose minimum is collapse; runs of it need this form. Published with scope `micro_batch`.
    """

    kind: Literal["mim"] = "mim"
    mim: Literal["paper", "released"] = "paper"
    scope: Scope = "step"


class BiasBalance(Strict):
    """No regulariser: a bias an expert, added to scores for the choice alone and moved by `rate * sign(mean load - load)` once a step
    (arXiv 2408.15664). Loads are exact counts over micro-batches and ranks: one small collective a step.
    """

    kind: Literal["bias"] = "bias"
    rate: float = Field(default=1e-3, gt=0.0)
    scope: Literal["step"] = "step"


class NoBalance(Strict):
    """Nothing."""

    kind: Literal["none"] = "none"


Regularised: TypeAlias = EntropyBalance | SwitchBalance | MIMBalance
Balance = Annotated[EntropyBalance | SwitchBalance | MIMBalance | BiasBalance | NoBalance, Field(discriminator="kind")]


class BalanceTerm(NamedTuple):
    """A router's part of the loss."""

    weight: float
    balance: Regularised
