"""Halting by its equations: every token computed at every visit, and what it must not change put back by `torch.where`.

Shape suffixes: B sequences, T tokens, D model width, M routers side by side, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from model.act import Act
from model.balance_config import BalanceTerm, MIMBalance
from model.block import Block
from model.moeut import MoEUT
from model.rotary import Positions
from model.router import Router
from model.stick_breaking import StickBreaking
from model.visit import Visit


@dataclass
class Reference:
    """What a forward should give; `active` are the tokens of every pass."""

    logits: Tensor
    ponder_B: Tensor
    balance_B: Tensor
    active: list[Tensor]


@dataclass
class Statistics:
    """Sums of routers' softmax, and of sum_e p ln p, over the tokens that count, each times its `share`, by layer and router."""

    sums: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    share_BT: Tensor | float = 1.0

    def add(self, layer: int, router: Router, n_BTD: Tensor, counts_BT: Tensor) -> None:
        p_BTME = router._logits(n_BTD, router.weight).unflatten(-1, (-1, router.n_experts)).softmax(-1)
        key = (layer, router.name)
        both_BTMC = torch.cat([p_BTME, (p_BTME * p_BTME.log()).sum(-1, keepdim=True)], -1)
        self.sums[key] = self.sums.get(key, 0.0) + (both_BTMC * (counts_BT * self.share_BT)[..., None, None]).sum(1)

    def regulariser(self, terms: dict[str, BalanceTerm]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for (_, name), sum_BMC in self.sums.items():
            if name not in terms:
                continue
            mean_BMC = sum_BMC / sum_BMC[..., :-1].sum(-1, keepdim=True)
            p_BME, of_a_token_BM = mean_BMC[..., :-1], mean_BMC[..., -1]
            value_BM = (p_BME * p_BME.log()).sum(-1)
            if isinstance(terms[name].balance, MIMBalance):  # H(e) + H(e|x), as the authors' code has it
                value_BM = -value_BM - of_a_token_BM
            total = total + terms[name].weight * value_BM.mean(-1)
        return total


def _layer(block: Block, number: int, x: Tensor, s: Tensor, where: Positions, active: Tensor, keys: Tensor, found: Statistics) -> Tensor:
    """The layer of all tokens: queries from x, keys and values from s."""
    visit = Visit()
    _, data, n = block._read(x, None, block.attention_norm, visit)
    _, data_s, n_s = block._read(s, None, block.attention_norm, visit)
    y, _ = block.attention(data_s, n_s, where, visit, n)
    for name, read, counted in (("value_router", n_s, keys), ("output_router", n, active), ("router", n, active)):
        if hasattr(block.attention, name):
            found.add(number, getattr(block.attention, name), read, counted)
    x, data, n = block._add_and_read(x, y, visit)
    found.add(number, block.feed_forward.router, n, active)
    y, _ = block.feed_forward(data, n, Visit())
    return block._add(x, y, block.feed_forward_norm, visit)


def reference(model: MoEUT, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Reference:
    """The forward of `model`, dropout off."""
    run = _stick_breaking if isinstance(model.halting, StickBreaking) else _act
    where = model._positions(tokens_BT, segments_BT, None)
    found = Statistics()
    y, ponder_BT, active = run(model, model._embed(tokens_BT), where, found)
    logits = model.head(model.final_norm(y))
    return Reference(logits, ponder_BT.mean(1), found.regulariser(model.config.balance_terms()), active)


def _group(
    model: MoEUT, x: Tensor, source: Callable[[Tensor], Tensor], where: Positions, active: Tensor, before: Tensor, found: Statistics
) -> Tensor:
    keys = before & active.any(1, keepdim=True)
    for number, block in enumerate(model.layers):
        y = _layer(block, number, x, source(x), where, active, keys, found)
        x = torch.where(active[..., None], y, x)
    return x


def _stick_breaking(model: MoEUT, x: Tensor, where: Positions, found: Statistics) -> tuple[Tensor, Tensor, list[Tensor]]:
    """alpha_l = a_l prod (1 - a_l'), s = sum alpha_l h_l + never h, frozen where never < 1 - threshold."""
    module: StickBreaking = model.halting
    active = torch.ones(x.shape[:2], dtype=torch.bool)
    h_of, alpha_of, never = [], [], torch.ones(x.shape[:2])
    x = _group(model, x, lambda z: z, where, active, active, found)
    s, passes = x, [active]
    for _ in range(1, model.config.depth.repeats):
        before = active
        chance = module.choice(torch.nn.functional.gelu(module.hidden(x))).softmax(-1)[..., 1]
        active = before & (never * (1 - chance) >= 1 - module.config.threshold)
        alpha = torch.where(active, never * chance, never * before)
        h_of, alpha_of = [*h_of, x], [*alpha_of, alpha]
        never = torch.where(active, never * (1 - chance), 0.0)
        halted = sum(a[..., None] * h for a, h in zip(alpha_of, h_of, strict=True))
        found.share_BT = never
        soft = partial(_soft, halted, never[..., None], s, active[..., None])
        x = _group(model, x, soft, where, active, before, found)
        s = soft(x)
        passes.append(active)
    depth = sum(i * alpha for i, alpha in enumerate(alpha_of)) + len(alpha_of) * never
    return s, module.config.loss_weight * depth, passes


def _soft(halted: Tensor, never: Tensor, frozen: Tensor, goes_on: Tensor, x: Tensor) -> Tensor:
    return torch.where(goes_on, halted + never * x, frozen)


def _act(model: MoEUT, x: Tensor, where: Positions, found: Statistics) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The step in the order of the published code, with the last pass taking what is left."""
    module: Act = model.halting
    halt, rem, updates = (torch.zeros(x.shape[:2]) for _ in range(3))
    output, passes, repeats = torch.zeros_like(x), [], model.config.depth.repeats
    running = before = torch.ones(x.shape[:2], dtype=torch.bool)
    for number in range(repeats):
        active = running
        p = module.linear(x).squeeze(-1).sigmoid()
        new = active & ((halt + p > 1 - module.config.epsilon) | torch.tensor(number == repeats - 1))
        running = active & ~new
        halt = halt + p * running
        rem = rem + new * (1 - halt)
        halt = halt + new * rem
        updates = updates + running.double() + new.double()
        w = (p * running + new * rem)[..., None]
        x = _group(model, x, lambda z: z, where, active, before, found)
        output = output + w * x if module.config.output == "accumulated" else w * x + (1 - w) * output
        passes.append(active)
        before = active
    return output, module.config.loss_weight * (updates + rem), passes
