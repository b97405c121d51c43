"""How experts and tables are laid over ranks, as data: `expert_parallel:` and `table_parallel:` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.slot_config import Strict


class ExpertParallelConfig(Strict):
    """Expert partitioning."""

    size: int = Field(default=1, ge=1)
    """Ranks that share one set of experts; divides the number of workers."""
    attention: bool = False
    """Partition SwitchHead's experts too."""
    overlap: bool | None = None
    """Cut a batch in two halves, so that one travels while the experts work on the other; null: on accelerators only, since on a CPU
    the same cores do both."""
    move: Literal["tokens", "weights", "auto"] = "tokens"
    """`tokens` go to their experts' owners and back; or `weights` come to the tokens, gathered once a step and kept over all visits,
    which takes memory for whole banks and their gradients; `auto` tries both on the run's ranks before the first step, with a
    feed-forward layer (attention's experts, if partitioned, move alike and are left out of the trial)."""


class TableParallelConfig(Strict):
    """Tables of product-key memories and PEER cut along d. Master weights, moments and gradients are cut with them."""

    size: int = Field(default=1, ge=1)
    """Ranks that share one set of tables; divides the number of workers. Equal results for every size."""
