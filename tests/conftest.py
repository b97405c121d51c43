"""Fixtures that all tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pool import Pool

# A busy machine is not a fault of the code.
settings.register_profile("mootron", deadline=None)
settings.load_profile("mootron")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the pool, and those that start a Ray, stay in one process of several (`--dist loadgroup`)."""
    for item in items:
        for shared in ("pool", "ray"):
            if shared in getattr(item, "fixturenames", ()) or item.get_closest_marker(shared):
                item.add_marker(pytest.mark.xdist_group(shared))


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Worker processes for tests that need several ranks: `pool.run(world, "module:function", **arguments)`."""
    workers = Pool()
    yield workers
    workers.close()
