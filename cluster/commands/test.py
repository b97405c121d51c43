"""Run the tests; arguments go to pytest."""

from __future__ import annotations

PASS_THROUGH = True
PROCESSES = 2  # several ranks of one test run beside each other already; more gained nothing on two cores


def run(words: list[str]) -> int:
    """Run pytest from the project's root and pass its exit code on. Without words the whole suite, in several processes."""
    import os
    import subprocess
    import sys

    from cluster.recipes import CODE_ROOT

    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    whole = not [word for word in words if not word.startswith("-")]
    side_by_side = ["-n", str(PROCESSES), "--dist", "loadgroup"] if whole else []
    return subprocess.run([sys.executable, "-P", "-m", "pytest", *side_by_side, *words], cwd=CODE_ROOT, env=environment).returncode
