"""Measure on one GPU what has not been measured yet, in pieces of at most 8 minutes (benchmarks/on_device.py)."""

from __future__ import annotations

from benchmarks import on_device


def main(argv: list[str]) -> int:
    """See `benchmarks.on_device.run`."""
    return on_device.run(argv)
