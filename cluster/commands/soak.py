"""Long counts: a job through 200 seeded faults beside the same job undisturbed; `soak kernels`: 200 drawn shapes of every kernel.

The faults take forty minutes on two cores, the kernels a quarter of an hour; `soak kernels --help` tells of its own arguments.
"""

from __future__ import annotations

PASS_THROUGH = True
FAULTS = 200


def run(words: list[str]) -> int:
    """Returns 1 where a sample or a loss differs, or a kernel is off."""
    if words[:1] == ["kernels"]:
        from benchmarks import soak_kernels

        return soak_kernels.main(words[1:])
    from benchmarks import faults

    return faults.main(words, prog="./launch.sh soak", count=FAULTS, description=__doc__)
