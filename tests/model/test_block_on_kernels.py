"""A whole MoEUT whose operations run their Triton kernels, in Triton's interpreter, against the operators of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import KINDS, gradients, relative, tiny_model, tiny_tokens
from torch import Tensor

from kernels import expert_mlp, norm_read, norm_read_triton, routed_linear, router, wide_linear

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="with an accelerator no tensor of a CPU reaches a Triton kernel"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),  # the sigmoid of masked logits is 0
]
ONE_VISIT: dict[str, Any] = {"depth": {"group": 1, "repeats": 1}}
OWN_VISITS: dict[str, Any] = {"depth": {"group": 1, "repeats": 2, "per_visit": ["router", "norm", "embedding", "residual_scale"]}}


def counted(reads: list[bool], original: Callable[..., Any]) -> Callable[..., Any]:
    """`norm_read_triton`, noting whether it was given something to add."""

    def read(x: Tensor, y: Tensor | None, *rest: Any) -> Any:
        reads.append(y is not None)
        return original(x, y, *rest)

    return read


ALL = (expert_mlp, norm_read, routed_linear, router, wide_linear)


@pytest.mark.parametrize(
    "norm, depth, rooms", [("peri", ONE_VISIT, ALL), ("pre", ONE_VISIT, (norm_read,)), ("peri", OWN_VISITS, (norm_read, wide_linear))]
)
def test_a_model_on_its_kernels_is_the_model(
    norm: str, depth: dict[str, Any], rooms: tuple[ModuleType, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same choices, the loss's every gradient to 1e-5."""
    model, tokens_BT = tiny_model(torch.float32, **{**KINDS[norm], **depth}), tiny_tokens(1, 3)
    records, on_kernels = ([dict[str, Any]() for _ in range(model.config.depth.n_visits)] for _ in range(2))
    expected = gradients(model, tokens_BT, records=records)
    for room in rooms:
        monkeypatch.setattr(room, "runs_triton", lambda x: True)
    reads: list[bool] = []
    monkeypatch.setattr(norm_read_triton, "norm_read_triton", counted(reads, norm_read_triton.norm_read_triton))
    found = gradients(model, tokens_BT, records=on_kernels)
    assert reads == [False, True] * len(records)
    for name in ("attention.value", "attention.output", "feed_forward"):
        assert torch.equal(on_kernels[0][name], records[0][name])
    assert found.keys() == expected.keys()
    errors = {name: relative(found[name], expected[name]) for name in expected}
    assert max(errors.values()) <= 1e-5, errors


def test_a_dropped_result_and_a_post_norm_are_added_by_the_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_BT, reads = tiny_tokens(1, 3), list[bool]()
    monkeypatch.setattr(norm_read, "runs_triton", lambda x: True)
    monkeypatch.setattr(norm_read_triton, "norm_read_triton", counted(reads, norm_read_triton.norm_read_triton))
    model = tiny_model(torch.float32, **ONE_VISIT, dropout=0.5)
    model(tokens_BT)
    model.eval()(tokens_BT)
    assert reads == [False, False, False, True]
    tiny_model(torch.float32, **ONE_VISIT, norm="post")(tokens_BT)
    assert len(reads) == 4
