"""Every slot that a recipe can name, in the smallest run that shows it. A new slot needs a line here and no test of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from small_run import recipe_values

DENSE = {"kind": "dense", "n_heads": 2, "d_head": 8}
FEED_FORWARD = {"kind": "dense", "d_ff": 20}
PEER = {"kind": "peer", "n_keys": 5, "heads": 2, "top_k": 4, "d_key": 6}
MEMORY = {"n_keys": 5, "heads": 2, "top_k": 3}


@dataclass(frozen=True)
class Case:
    """What a slot changes of the small run.

    Attributes:
        model: fields of the recipe's `model`.
        cut: what two ranks have a part of each: `experts`, `tables`, `both` or `nothing`.
        exempt: it has a statistic of scope `micro_batch`, which is another function for another micro-batch or world.
        replayed: choices can be recorded and obeyed.
        whole_gradient: the backward gives the gradient of the forward.
        changes: of other parts of the recipe.
    """

    model: dict[str, Any]
    cut: Literal["experts", "tables", "both", "nothing"] = "experts"
    exempt: bool = False
    replayed: bool = True
    whole_gradient: bool = True
    changes: dict[str, Any] = field(default_factory=dict)


def routed(**fields: Any) -> dict[str, Any]:
    """The small run's experts with other fields."""
    return {"feed_forward": {"kind": "sigma_moe", "n_experts": 7, "d_expert": 8, "top_k": 3, **fields}}


STEP, MICRO_BATCH = {"scope": "step"}, {"scope": "micro_batch"}
ALLOWED = {"router": {"allow_micro_batch_scope": True}}

MIM = {"kind": "mim", "mim": "released"}
SUT = {
    "norm": "post",
    "depth": {"group": 1, "repeats": 4},
    "attention": {"kind": "momha", "n_heads": 1, "d_head": 8, "n_experts": 4, "top_k": 2, "balance": MIM},
    "halting": {"kind": "stick_breaking", "threshold": 0.75},
    **routed(score="softmax", softmax_over="chosen", router_hidden=6, balance=MIM),
}

ROUTED_GROUP = {
    "depth": {"prelude": 1, "group": 2, "repeats": 2, "coda": 1},
    "feed_forward_at": {0: FEED_FORWARD, 3: PEER},
    **routed(balance={"kind": "bias"}),
}

CASES: dict[str, Case] = {
    "moeut": Case({}),
    "dense": Case({"norm": "pre", "attention": DENSE, "feed_forward": FEED_FORWARD}, cut="nothing"),
    "post": Case({"norm": "post"}),
    "loop": Case({"depth": {"prelude": 1, "group": 2, "repeats": 2, "coda": 1, "order": "loop"}}),
    "gated_expert": Case({"attention": {"kind": "switchhead", "n_heads": 2, "d_head": 8, "n_experts": 1, "single_expert": "gated_expert"}}),
    "momha": Case({"norm": "post", "attention": {"kind": "momha", "n_heads": 1, "d_head": 8, "n_experts": 4, "top_k": 2}}),
    "softmax": Case(routed(score="softmax", renormalise=True, balance={"kind": "entropy", **STEP})),
    "two_layer_router": Case(routed(score="softmax", softmax_over="chosen", router_hidden=6, balance={"kind": "mim", **STEP})),
    "switch": Case(routed(kind="switch", top_k=1, balance={"kind": "switch", **STEP})),
    "switch_as_published": Case(routed(kind="switch", top_k=1, balance={"kind": "switch", **MICRO_BATCH}), exempt=True, changes=ALLOWED),
    "s_base": Case(routed(kind="s_base", choice_scope="sequence")),
    "bias": Case(routed(balance={"kind": "bias"})),
    "topk": Case({"norm": "pre", "feed_forward": {"kind": "topk", "d_ff": 24, "top_k": 6}}, cut="nothing"),
    "pkm": Case({"norm": "pre", "feed_forward": {**MEMORY, "kind": "pkm", "d_key": 6}}, cut="tables"),
    "pkm_batch_norm": Case(
        {"norm": "pre", "feed_forward": {**MEMORY, "kind": "pkm", "d_key": 6, "query_norm": "batch"}},
        cut="tables",
        exempt=True,
        changes=ALLOWED,
    ),
    "pkm_halves": Case({"norm": "pre", "feed_forward": {**MEMORY, "kind": "pkm_halves"}}, cut="tables"),
    "pkm_dense": Case({"norm": "pre", "feed_forward": {**MEMORY, "kind": "pkm_halves", "top_k": 5}}, cut="tables"),
    "peer": Case({"feed_forward": PEER}, cut="tables"),
    "one_peer": Case({"feed_forward": FEED_FORWARD, "feed_forward_at": {1: PEER}}, cut="tables"),
    "routed_group": Case(ROUTED_GROUP, cut="both"),
    "altup": Case({"residual": {"kind": "altup", "streams": 2}}),
    "recycled_altup": Case({"residual": {"kind": "recycled_altup", "streams": 3, "compute_input": "predicted", "routed": True}}),
    "per_visit": Case({"depth": {"group": 2, "repeats": 2, "per_visit": ["router", "norm", "embedding", "residual_scale"]}}),
    "sampled": Case({"depth": {"group": 2, "repeats": 2, "sample": {"kind": "uniform", "min": 1, "max": 3}, "residual_scale": "1/R"}}),
    "truncated": Case({"norm": "pre", "depth": {"group": 2, "repeats": 3, "backprop_repeats": 2}}, whole_gradient=False),
    "stick_breaking": Case({"depth": {"group": 2, "repeats": 4}, "halting": {"kind": "stick_breaking", "threshold": 0.75}}, replayed=False),
    "sut": Case(SUT, replayed=False),
    "act": Case({"depth": {"group": 1, "repeats": 3}, "halting": {"kind": "act", "epsilon": 0.27}}, replayed=False),
}


def values_of(case: Case, home: Path, name: str, world: int, **train: Any) -> dict[str, Any]:
    """The recipe of a case's run."""
    settings = {"steps": 4, "engine": "plain" if world == 1 else "deepspeed", **train}
    values = recipe_values(home, **settings) | {"name": name}
    values["expert_parallel"] = {"size": world if case.cut in ("experts", "both") else 1}
    values["table_parallel"] = {"size": world if case.cut in ("tables", "both") else 1}
    values["model"] |= case.model
    values["data"]["loader_workers"] = 0
    values["validation"] = {"every": 100, "windows": 1, "batch": 1}
    values["checkpoint"] = {"every": 100, "keep_last": 9, "asynchronous": False}
    return values | case.changes
