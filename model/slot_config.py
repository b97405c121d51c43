"""What every feed-forward slot says of itself, whatever its kind: the questions that the rest of the house asks of one."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    from model.balance_config import BalanceTerm, Scope


class Strict(BaseModel):
    """Base of all recipe parts: unknown keys are errors, numbers are finite, true is no number, values do not change after the check.

    The string below a field is its words, which `./launch.sh fields` shows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """pydantic takes true for 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
            taken = [annotation, *get_args(annotation)]
            taken += [type(one) for one in taken]  # of a Literal's values
            if isinstance(value, bool) and bool not in taken and (int in taken or float in taken):
                raise ValueError(f"{name} is {str(value).lower()}, where a number belongs")
        return values


class Count(NamedTuple):
    """Parameters of a slot: all, and those one token meets (of a bank or a table only what it chose)."""

    stored: int
    active: int


class FeedForwardSlot(Strict):
    """Base of the feed-forward kinds. `model.slots` says which module reads which.

    `params_knobs`, `macs_knobs`: the fields that `model.matching` may turn to meet a number of parameters or of multiply-accumulates,
    the one to try first in front.
    """

    params_knobs: ClassVar[tuple[str, ...]] = ()
    macs_knobs: ClassVar[tuple[str, ...]] = ()

    @property
    def routed_experts(self) -> int:
        """Experts that expert parallelism can partition and whose routes are counted at every visit; 0 where there are none."""
        return 0

    @property
    def candidates(self) -> int:
        """Experts, table rows or hidden units of which a token chooses some, numbered as in a visit's record; 0 where it does not."""
        return self.routed_experts

    @property
    def table_rows(self) -> int:
        """Rows of each of its tables that can be cut along d over ranks; 0 where it has none."""
        return 0

    def router_weights(self, d_model: int) -> int:
        """Of its parameters those that visits have apart with `depth.per_visit: [router]`."""
        return 0

    def balance_terms(self) -> dict[str, BalanceTerm]:
        """What the loss takes of the statistics that the module gives, by router name."""
        return {}

    def statistic_scopes(self) -> dict[str, Scope]:
        """Over what its statistics are taken, by the field that says so; empty where it has none."""
        return {}

    @abstractmethod
    def parameters(self, d_model: int) -> Count:
        """Parameters of one layer's slot, to the unit."""

    @abstractmethod
    def macs(self, d_model: int, exact: bool) -> int:
        """Multiply-accumulates of one token's visit; `exact` adds what published counts leave out."""
