"""SwitchHead, both one-expert forms and dense attention against a reference in plain loops (arXiv 2312.07987 eq. 7-10)."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import KINDS, relative, tiny_model
from torch import Tensor

from model.block import Block
from model.exchange import ExpertWork, LocalExchange
from model.rotary import Positions, positions
from model.switchhead import SwitchHead
from model.visit import Visit

TOKENS = 6


def _where(attention: torch.nn.Module) -> Positions:
    tokens_BT = torch.zeros(2, TOKENS, dtype=torch.int64)
    return positions(tokens_BT, 0, None, attention.d_head, tiny_model().config.attention.rotary, torch.float64)


def _turn(x_d: Tensor, position: int, channels: int = 6) -> Tensor:
    """Rotate pairs (i, i + channels/2) by position * 10000^(-2i/channels)."""
    turned, half = x_d.clone(), channels // 2
    for i in range(half):
        angle = position * 10000 ** (-2 * i / channels)
        turned[i] = x_d[i] * math.cos(angle) - x_d[i + half] * math.sin(angle)
        turned[i + half] = x_d[i + half] * math.cos(angle) + x_d[i] * math.sin(angle)
    return turned


def _best(scores_E: Tensor, top_k: int) -> list[int]:
    return scores_E.argsort(descending=True)[:top_k].tolist()


def _value(attention: torch.nn.Module, x_D: Tensor, n_D: Tensor, head: int) -> Tensor:
    d = attention.d_head
    if not isinstance(attention, SwitchHead):
        return attention.value.weight[head * d : (head + 1) * d] @ x_D
    experts = range(head * attention.experts_per_head, (head + 1) * attention.experts_per_head)
    score_E = torch.sigmoid(attention.value_router.weight[experts.start : experts.stop] @ n_D)
    chosen = _best(score_E, attention.value_router.top_k)
    return sum(score_E[e] * (x_D @ attention.value.weight[experts[e]]) for e in chosen)


def _answer(attention: torch.nn.Module, head: int, attended_d: Tensor, n_D: Tensor) -> Tensor:
    d = attention.d_head
    if not isinstance(attention, SwitchHead):
        gate = torch.sigmoid(attention.gate.weight[head] @ n_D) if hasattr(attention, "gate") else 1.0
        return gate * (attention.output.weight[:, head * d : (head + 1) * d] @ attended_d)
    experts = range(head * attention.experts_per_head, (head + 1) * attention.experts_per_head)
    score_E = torch.sigmoid(attention.output_router.weight[experts.start : experts.stop] @ n_D)
    chosen = _best(score_E, attention.output_router.top_k)
    return sum(score_E[e] * (attended_d @ attention.output.weight[experts[e]]) for e in chosen)


def _attention_of(attention: torch.nn.Module, x_TD: Tensor, n_TD: Tensor) -> Tensor:
    """One sequence: values gated by the token they come from, outputs by the token they go to."""
    y_TD, d, channels = torch.zeros_like(x_TD), attention.d_head, 2 * (attention.d_head // 4)
    for head in range(attention.n_heads):
        rows = slice(head * d, (head + 1) * d)
        query = [_turn(attention.query.weight[rows] @ n, t, channels) for t, n in enumerate(n_TD)]
        key = [_turn(attention.key.weight[rows] @ n, t, channels) for t, n in enumerate(n_TD)]
        value = [_value(attention, x, n, head) for x, n in zip(x_TD, n_TD, strict=True)]
        for t in range(len(n_TD)):
            share = torch.stack([query[t] @ key[s] / math.sqrt(d) for s in range(t + 1)]).softmax(0)
            attended_d = sum(share[s] * value[s] for s in range(t + 1))
            y_TD[t] += _answer(attention, head, attended_d, n_TD[t])
    return y_TD


@pytest.mark.parametrize("kind", ["peri", "output_gate", "gated_expert", "dense"])
def test_every_kind_is_its_equations(kind: str) -> None:
    block: Block = tiny_model(**KINDS[kind]).layers[0]
    generator = torch.Generator().manual_seed(3)
    x_BTD = torch.randn(2, TOKENS, 36, dtype=torch.float64, generator=generator)
    n_BTD = torch.randn(2, TOKENS, 36, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        y_BTD, statistics = block.attention(x_BTD, n_BTD, _where(block.attention), Visit())
        expected = torch.stack([_attention_of(block.attention, x, n) for x, n in zip(x_BTD, n_BTD, strict=True)])
    assert relative(y_BTD, expected) <= 1e-12
    assert set(statistics) == ({"attention.value", "attention.output"} if kind in ("peri", "gated_expert") else set())


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 6])
def test_banks_cut_anywhere_in_the_flat_range_add_up(cut: int) -> None:
    """Ranks own ranges of the H * N_A flat numbers; the rows each sends back sum to the whole, heads cut in two included."""

    class Part(LocalExchange):
        size = 2

        def __init__(self, start: int, stop: int) -> None:
            self.part = range(start, stop)

        def owned(self, n_experts: int) -> range:
            return self.part

    whole: SwitchHead = tiny_model().layers[0].attention
    routing = torch.Generator().manual_seed(0)
    x_SD, x_SC = torch.randn(5, 36, dtype=torch.float64), torch.randn(5, 26, dtype=torch.float64)
    row_Q = torch.randint(5, (40,), generator=routing)
    flat_Q, weight_Q = torch.randint(6, (40,), generator=routing), torch.rand(40, dtype=torch.float64, generator=routing)
    values, outputs = torch.zeros(5, 26, dtype=torch.float64), torch.zeros(5, 36, dtype=torch.float64)
    with torch.no_grad():
        for owned in (range(cut), range(cut, 6)):
            part = SwitchHead(36, tiny_model().config.attention, Part(owned.start, owned.stop)).double()
            part.value.weight.copy_(whole.value.weight[owned.start : owned.stop])
            part.output.weight.copy_(whole.output.weight[owned.start : owned.stop])
            here = (flat_Q >= owned.start) & (flat_Q < owned.stop)
            local = (row_Q[here], flat_Q[here] - owned.start, weight_Q[here])
            values += part._values(ExpertWork(x_SD, *local))
            outputs += part._outputs(ExpertWork(x_SC, *local))
        assert relative(values, whole._values(ExpertWork(x_SD, row_Q, flat_Q, weight_Q))) <= 1e-14
        assert relative(outputs, whole._outputs(ExpertWork(x_SC, row_Q, flat_Q, weight_Q))) <= 1e-14
