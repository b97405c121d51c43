"""What the residual stream and its readers (queries, keys, routers' logits) must do at least in a visit, in several forms."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.floors import BF16, FP32, Work
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.moe_config import SigmaMoEConfig


def stream(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """A visit's work on the float32 stream, both halves and both ways: additions, both casts, layer norms.

    Each list has a visit's passes in bytes an entry. By operators, a half: addition 4+2+4, cast 4+2, norm 4+4, cast 4+2; backward:
    casts of dn and ddata 2+4 each, norm 4+4+4, its weights 4+4, two sums of gradients 4+4+4, cast of dy 4+2.
    """
    entries = tokens * config.d_model
    add, cast, dy = 10, 6, 6
    operators = 2 * ((add + cast + 8 + cast) + (2 * cast + 12 + 8 + 2 * 12 + dy))
    read, read_added = 4 + 2 + 2, 4 + 2 + 4 + 2 + 2
    back, back_added = 4 + 2 + 2 + 4 + 4, 4 + 2 + 2 + 4 + 4 + 2
    return {
        "by operators": Work(0, operators * entries),
        "in one pass": Work(0, (read + read_added + add + back + back_added + dy) * entries),
        "over visits": Work(0, 2 * (read_added + back_added) * entries),
    }


def readers(config: ModelConfig, tokens: int) -> dict[str, Work]:
    """Every product of a visit that reads the normalised stream, forward and backward, and the sums of the gradients it gets from them.

    `logits fp32`, `logits`: the three routers in float32 and on tensor cores. `... joined`: queries with keys, and the attention's
    routers, as one product each. In a visit are `logits`, `query, key` and `dn sums`.
    """
    feed_forward, attention = config.feed_forward, config.attention
    assert isinstance(feed_forward, SigmaMoEConfig) and isinstance(attention, SwitchHeadConfig)
    width, heads = config.d_model, attention.n_heads * attention.d_head
    routers, experts = attention.n_heads * attention.n_experts, feed_forward.n_experts
    one_sum = 3 * tokens * width * BF16
    return {
        "logits fp32": _sum(_float32_logits(tokens, width, out) for out in (routers, routers, experts)),
        "logits": _sum(_reader(tokens, width, out, FP32) for out in (routers, routers, experts)),
        "logits joined": _sum(_reader(tokens, width, out, FP32) for out in (2 * routers, experts)),
        "query, key": _sum(_reader(tokens, width, heads, BF16) for _ in range(2)),
        "q, k joined": _reader(tokens, width, 2 * heads, BF16),
        "dn sums": Work(0, 3 * one_sum),
        "dn sums joined": Work(0, one_sum),
    }


def _reader(tokens: int, width: int, out: int, out_bytes: int) -> Work:
    """x in, result out; gradient in (rounded first where it is float32), dx out; both in for the weights."""
    x, y, w = tokens * width * BF16, tokens * out * BF16, width * out * BF16
    rounding = tokens * out * FP32 + y if out_bytes == FP32 else 0
    return Work(6 * tokens * width * out, (x + tokens * out * out_bytes + w) + rounding + (y + w + x) + (x + y + w))


def _float32_logits(tokens: int, width: int, out: int) -> Work:
    """The same with x widened and kept, and dx narrowed."""
    x, y, w = tokens * width * FP32, tokens * out * FP32, width * out * FP32
    casts = 2 * tokens * width * (BF16 + FP32)
    return Work(0, 3 * (x + y + w) + casts, float32_flops=6 * tokens * width * out)


def _sum(works: Iterable[Work]) -> Work:
    return Work(*(sum(column) for column in zip(*works, strict=True)))
