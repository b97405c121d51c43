"""Run a job through 200 seeded faults and compare it with the same job undisturbed; arguments as of bench faults.

It takes forty minutes on two cores. --faults N makes it shorter, --log FILE keeps the report.
"""

from __future__ import annotations

PASS_THROUGH = True
FAULTS = 200


def run(words: list[str]) -> int:
    """`bench faults` at full length; returns 1 where a sample or a loss differs."""
    from benchmarks.faults import main

    return main(["--faults", str(FAULTS), *words])
