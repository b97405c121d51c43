"""Rows of the table of sizes: they add up to the whole, and a PEER layer costs what can be worked out by hand."""

from __future__ import annotations

import pytest
from tiny_models import KINDS, tiny_config

from model.accounting import kv_cache_bytes, macs, parameters, weight_bytes_read
from model.paper import PAPER
from model.product_key_config import PeerConfig
from model.sizes import part_sizes


@pytest.mark.parametrize("kind", KINDS)
def test_rows_add_up_to_the_whole(kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    *rows, total = part_sizes(config, 16, 2)
    for column in ("stored", "unrolled", "active", "macs", "weight_bytes", "kv_bytes"):
        assert sum(getattr(row, column) for row in rows) == getattr(total, column)
        assert all(getattr(row, column) >= 0 for row in rows)
    assert all(row.weight_bytes == 2 * row.active for row in rows)
    whole = parameters(config)
    assert (total.stored, total.unrolled, total.active) == (whole.stored, whole.unrolled, whole.active)
    assert total.macs * 16 == macs(config, 16).total
    assert (total.weight_bytes, total.kv_bytes) == (weight_bytes_read(config, 2), kv_cache_bytes(config, 1, 2))


def test_what_is_left_over_is_norms_and_streams() -> None:
    """Two norms of gain and bias a layer and one before the head, visited 3 times each; nothing else."""
    other = part_sizes(tiny_config(), 16, 2)[-2]
    assert (other.stored, other.active, other.macs) == (2 * 4 * 36 + 2 * 36, 6 * 4 * 36 + 2 * 36, 0)


def test_moeut_244m() -> None:
    """Of 387 experts a token reads 16 at each of 18 visits, and every router row."""
    feed_forward = next(row for row in part_sizes(PAPER["244M"], 1024, 2) if row.part == "feed_forward")
    assert (feed_forward.kind, feed_forward.layers, feed_forward.visits) == ("sigma_moe", 2, 18)
    assert feed_forward.stored == 2 * 387 * (2 * 1024 * 128 + 1024)
    assert feed_forward.weight_bytes == 18 * (16 * 2 * 1024 * 128 + 387 * 1024) * 2


def test_a_slot_of_its_own_has_a_row() -> None:
    rows = [row for row in part_sizes(tiny_config(**KINDS["one_peer"]), 16, 2) if row.part == "feed_forward"]
    assert [(row.kind, row.layers, row.visits) for row in rows] == [("dense", 2, 4), ("peer", 1, 2)]


@pytest.mark.parametrize(("d_key", "queries", "sub_keys", "whole"), [(128, 2.10, 2.10, 4.72), (512, 8.39, 8.39, 17.30)])
def test_peer_of_a_million_experts(d_key: int, queries: float, sub_keys: float, whole: float) -> None:
    """d 1024, N 1024^2, h 8, k 16 (arXiv 2407.04153): 2 N d parameters, MFLOPs a token, half a MiB of rows in bfloat16."""
    slot = PeerConfig(n_keys=1024, heads=8, top_k=16, d_key=d_key, keys_per_head=False, query_norm="none")
    linear = 1024 * 8 * d_key
    assert slot.parameters(1024).stored - linear - 1024 * d_key == 2 * 1024**2 * 1024 == 2_147_483_648
    assert (slot.parameters(1024).active - linear - 1024 * d_key) * 2 == 2**19
    assert round(2 * slot.macs(1024, exact=False) / 1e6, 2) == whole
    assert (round(2 * linear / 1e6, 2), round(2 * 8 * 1024 * d_key / 1e6, 2)) == (queries, sub_keys)
