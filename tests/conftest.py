"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pool import Pool

# Read where a kernel is defined: without an accelerator the Triton kernels run in Triton's interpreter.
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ["TRITON_INTERPRET"] = "1"
else:  # read at the first matrix product, which some other test may make before those that need equal bits
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# A busy machine is not a fault of the code.
settings.register_profile("mootron", deadline=None)
settings.load_profile("mootron")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the pool, and those that start a Ray, stay in one process of several (`--dist loadgroup`).

    Those marked `alone` come after the pool's: beside others they would pass limits of time that they are to show.
    """
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)
    for item in items:
        names = {*getattr(item, "fixturenames", ()), *(mark.name for mark in item.iter_markers())}
        if {"pool", "alone"} & names:
            item.add_marker(pytest.mark.xdist_group("pool"))
        elif "ray" in names:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Worker processes for tests that need several ranks: `pool.run(world, "module:function", **arguments)`."""
    workers = Pool()
    yield workers
    workers.close()
