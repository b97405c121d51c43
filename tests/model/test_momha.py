"""MoMHA against its equations, token by token."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tiny_models import MOMHA, gradients, relative, tiny_config, tiny_model, tiny_tokens, worst
from torch import Tensor

from model.accounting import kv_cache_bytes, macs, parameters
from model.block import Block
from model.cache import KVCache
from model.moeut import MoEUT
from model.momha import Momha
from model.rotary import positions, rotate
from model.visit import Visit


def _where(module: Momha, n_tokens: int) -> object:
    rotary = tiny_config(attention=MOMHA).attention.rotary
    return positions(torch.zeros(2, n_tokens, dtype=torch.int64), 0, None, module.d_head, rotary, torch.float64)


def _by_token(module: Momha, data_BTD: Tensor, n_BTD: Tensor) -> Tensor:
    """sum over a token's experts of weight * concat_heads(softmax(q k) v) W_o, one token and one expert at a time."""
    rows = []
    for b, t in torch.cartesian_prod(torch.arange(n_BTD.shape[0]), torch.arange(n_BTD.shape[1])).tolist():
        hidden = torch.tanh(module.router.hidden.weight @ n_BTD[b, t] + module.router.hidden.bias)
        best = (module.router.weight @ hidden).softmax(0).topk(module.top_k)
        y = torch.zeros_like(n_BTD[b, t])
        for weight, expert in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            where = _where(module, t + 1)
            k_HSd, v_HSd = (
                (x[b, : t + 1] @ w.weight.T).view(t + 1, -1, module.d_head).transpose(0, 1)
                for x, w in ((n_BTD, module.key), (data_BTD, module.value))
            )
            q_Hd = (n_BTD[b, t] @ module.query.weight[expert]).view(-1, module.d_head)
            turned = rotate(q_Hd[None, :, None].expand(1, -1, t + 1, -1), where)[0, :, t]
            scores = torch.einsum("hd,hsd->hs", turned, rotate(k_HSd[None], where)[0]) / module.d_head**0.5
            found = torch.einsum("hs,hsd->hd", scores.softmax(-1), v_HSd)
            y = y + weight * (found.flatten() @ module.output.weight[expert])
        rows.append(y)
    return torch.stack(rows).view_as(n_BTD)


def test_it_is_its_equations() -> None:
    block: Block = tiny_model(attention=MOMHA).layers[0]
    module: Momha = block.attention
    generator = torch.Generator().manual_seed(2)
    data, n, d_y = (torch.randn(2, 5, 36, dtype=torch.float64, generator=generator) for _ in range(3))
    inputs = [data.requires_grad_(), n.requires_grad_(), *module.parameters()]
    actual, statistics = module(data, n, _where(module, 5), Visit())
    expected = _by_token(module, data, n)
    assert relative(actual, expected) <= 1e-12
    logits = torch.tanh(module.router.hidden(n)) @ module.router.weight.T
    assert relative(statistics["attention"][:, 0], logits.softmax(-1).sum(1)) <= 1e-12
    ours, theirs = (torch.autograd.grad(y, inputs, d_y) for y in (actual, expected))
    assert all(relative(mine, other) <= 1e-11 for mine, other in zip(ours, theirs, strict=True))


def test_one_expert_is_dense_attention() -> None:
    one, dense = (
        tiny_model(attention={**MOMHA, "n_experts": 1, "top_k": 1}),
        tiny_model(attention={"kind": "dense", "n_heads": 2, "d_head": 14}),
    )
    state = {name: value for name, value in one.state_dict().items() if "attention.router" not in name}
    for name in state:
        if "attention.query" in name or "attention.output" in name:
            state[name] = state[name][0].T
    dense.load_state_dict(state)
    assert relative(one(tiny_tokens()).logits, dense(tiny_tokens()).logits) <= 1e-12


def test_what_it_costs() -> None:
    """SUT's 44M layer: 24 experts of 4 heads of 64, 2 chosen."""
    config = tiny_config(d_model=412, attention={"kind": "momha", "n_heads": 4, "d_head": 64, "n_experts": 24, "top_k": 2})
    slot = config.attention
    assert slot.parameters(412) == (2 * 25 * 412 * 256 + 412 * 413 + 24 * 412, 2 * 3 * 412 * 256 + 412 * 413 + 24 * 412)
    assert macs(config, 10).attention == 60 * ((2 + 4) * 412 * 256 + 2 * 256 + 412 * 412 + 24 * 412 + 2 * 512 * 10)
    assert kv_cache_bytes(config, 10, 2) == 6 * 2 * 256 * 10 * 2
    assert parameters(tiny_config(attention=MOMHA)).stored == sum(p.numel() for p in MoEUT(tiny_config(attention=MOMHA)).parameters())


def test_router_dropout_is_repeated_in_a_recomputation() -> None:
    found = []
    for recompute in ("none", "visit"):
        torch.manual_seed(11)
        found.append(gradients(tiny_model(recompute=recompute, attention={**MOMHA, "router_dropout": 0.3}), tiny_tokens()))
    difference, where = worst(found[1], found[0])
    assert difference <= 1e-12, where


def test_decoding_equals_the_full_forward() -> None:
    model, tokens_BT, cache = tiny_model(attention=MOMHA).eval(), tiny_tokens(2, 9), KVCache(6)
    with torch.no_grad():
        one_by_one = [model(token_B1, cache=cache).logits for token_B1 in tokens_BT.split(1, dim=1)]
        assert relative(torch.cat(one_by_one, dim=1), model(tokens_BT).logits) <= 1e-12


def test_more_chosen_than_there_are() -> None:
    with pytest.raises(ValidationError, match="top_k is 6 but there are 5 experts; choose top_k <= 5"):
        tiny_config(attention={**MOMHA, "top_k": 6})
