"""Rotary positions: odd halves, relative angles, restarts at documents."""

from __future__ import annotations

import pytest
import torch

from model.attention_config import RotaryConfig
from model.rotary import positions, rotate, rotated_channels


@pytest.mark.parametrize(("d_head", "fraction", "channels"), [(82, 0.5, 40), (41, 0.5, 20), (128, 0.5, 64), (82, 1.0, 82), (7, 0.1, 0)])
def test_an_even_number_of_channels_is_rotated(d_head: int, fraction: float, channels: int) -> None:
    assert rotated_channels(d_head, fraction) == channels


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_scores_depend_on_distance_alone(fraction: float) -> None:
    tokens_BT = torch.zeros(1, 9, dtype=torch.int64)
    where = positions(tokens_BT, 0, None, 82, RotaryConfig(fraction=fraction), torch.float64)
    query, key = torch.randn(2, 82, dtype=torch.float64)
    turned_query, turned_key = (rotate(x.expand(1, 1, 9, 82), where)[0, 0] for x in (query, key))
    scores = turned_query @ turned_key.T
    for distance in range(9):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-12)
    assert torch.allclose(scores[0, 0], query @ key)
    assert torch.equal(turned_query[:, rotated_channels(82, fraction) :], query.expand(9, 82)[:, rotated_channels(82, fraction) :])
    assert (fraction == 0) == torch.equal(turned_query[5], query)


def test_positions_restart_with_every_document() -> None:
    segments_BT = torch.tensor([[0, 0, 0, 1, 1, 2], [4, 4, 4, 4, 4, 4]])
    rotary = RotaryConfig()
    where = positions(segments_BT, 0, segments_BT, 8, rotary, torch.float64)
    plain = positions(segments_BT, 0, None, 8, rotary, torch.float64)
    assert torch.equal(where.cos[0, 0], plain.cos[torch.tensor([0, 1, 2, 0, 1, 0])])
    assert torch.equal(where.sin[1, 0], plain.sin)
    assert where.mask is not None and where.mask.shape == (2, 1, 6, 6)
    expected = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(1, 1)).tril().bool()
    assert torch.equal(where.mask[0, 0], expected)
    assert torch.equal(where.mask[1, 0], torch.ones(6, 6).tril().bool())


def test_tokens_after_a_past_continue_it() -> None:
    all_BT = torch.zeros(1, 7, dtype=torch.int64)
    whole = positions(all_BT, 0, None, 8, RotaryConfig(), torch.float64)
    rest = positions(all_BT[:, :3], 4, None, 8, RotaryConfig(), torch.float64)
    assert torch.equal(rest.cos, whole.cos[4:])
    assert rest.mask is not None
    assert torch.equal(rest.mask, torch.ones(7, 7).tril().bool()[4:])
