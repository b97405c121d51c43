"""Style and types of the whole project, as pyproject.toml asks (mypy keeps a cache: the second run takes seconds)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["kernels", "model", "data_pipeline", "distributed", "cluster", "benchmarks"]


def outcome(*words: str) -> str:
    """What a tool says about the project; empty when it has no complaint."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff() -> None:
    complaints = outcome("ruff", "check", "--output-format=concise", *ROOMS, "tests")
    assert not complaints, complaints


def test_mypy() -> None:
    complaints = outcome("mypy", *ROOMS)
    assert not complaints, complaints
