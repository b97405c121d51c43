"""Run the tests; arguments go to pytest."""

from __future__ import annotations

PASS_THROUGH = True


def run(words: list[str]) -> int:
    """Run pytest from the project's root and pass its exit code on."""
    import os
    import subprocess
    import sys

    from cluster.recipes import CODE_ROOT

    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run([sys.executable, "-P", "-m", "pytest", *words], cwd=CODE_ROOT, env=environment).returncode
