"""Decoding with the cache against the full forward: 1e-10 in float64, 1e-5 in float32 (relative)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import KINDS, relative, tiny_model, tiny_tokens

from model.errors import ModelError
from model.generate import KVCache, generate, sample


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", list(KINDS))
def test_decoding_by_pieces_equals_the_full_forward(kind: str, dtype: torch.dtype, bar: float) -> None:
    model = tiny_model(dtype, **KINDS[kind]).eval()
    tokens_BT = tiny_tokens(3, 14)
    with torch.no_grad():
        expected = model(tokens_BT).logits
        for pieces in ([1] * 14, [5, 1, 1, 4, 3]):
            cache = KVCache(model.config.depth.n_numbers())
            logits = torch.cat([model(piece, cache=cache).logits for piece in tokens_BT.split(pieces, dim=1)], dim=1)
            assert relative(logits, expected) <= bar
            assert cache.length == 14
            assert [visit.length for visit in cache.visits] == [14 * made for made in model.config.depth.made()]


def test_a_shared_layer_has_a_cache_a_visit() -> None:
    model = tiny_model()
    cache = KVCache(model.config.depth.n_numbers())
    with torch.no_grad():
        model(tiny_tokens(1, 4), cache=cache)
        one = torch.zeros(1, 2, 1, 13, dtype=torch.float64)
        first, third = (cache.visits[visit].extend(one, one)[0] for visit in (0, 2))
    assert len(cache.visits) == 6
    assert relative(first, third) > 1e-2


def test_greedy_text_is_that_of_full_forwards() -> None:
    model, tokens_BT = tiny_model(), tiny_tokens(2, 5)
    expected = tokens_BT
    with torch.no_grad():
        for _ in range(8):
            expected = torch.cat([expected, model(expected).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, tokens_BT, 8, temperature=0), expected)
    assert torch.equal(generate(model, tokens_BT, 8, temperature=0.7, top_k=1), expected)
    assert model.training


def test_draws_are_those_of_the_seed() -> None:
    model, tokens_BT = tiny_model(), tiny_tokens(2, 5)
    texts = [generate(model, tokens_BT, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    assert torch.equal(generate(model, tokens_BT, 0), tokens_BT)


def test_draws_follow_temperature_and_stay_in_the_top() -> None:
    logits_BV = torch.tensor([[1.0, 2.0, 3.0, -4.0]]).expand(20_000, 4)
    drawn = sample(logits_BV, 2.0, 2, torch.Generator().manual_seed(0)).flatten().bincount(minlength=4) / 20_000
    expected = torch.tensor([0.0, 1.0, 1.5, 0.0]).exp() * torch.tensor([0, 1, 1, 0])
    assert torch.allclose(drawn, expected / expected.sum(), atol=0.02)
    assert drawn[0] == drawn[3] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new": -1}, "max_new is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"tokens_BT": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
        ({"tokens_BT": torch.tensor([[3, 61]])}, r"3\.\.61, the vocabulary in 0\.\.60"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        generate(**{"model": tiny_model(), "tokens_BT": tiny_tokens(), "max_new": 3, **arguments})
