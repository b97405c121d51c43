"""The secret of a private cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import local_cluster


def test_the_token_is_drawn_once_and_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "cluster_folder", lambda: tmp_path / "cluster")
    token = local_cluster._token()
    assert len(token) == 64
    assert local_cluster._token() == token
    assert (tmp_path / "cluster" / "token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cluster").stat().st_mode & 0o777 == 0o700
