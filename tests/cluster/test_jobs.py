"""What travels to a Ray cluster with a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.jobs import entrypoint, stage
from distributed.recipe import Recipe


def test_staged_folder_is_enough_to_check_the_run(tmp_path: Path, recipe: Recipe) -> None:
    stage(tmp_path, recipe.model_copy(update={"name": "sent"}))
    assert not list(tmp_path.rglob("__pycache__")) and not (tmp_path / "tests").exists()
    command = [*entrypoint("sent", None, sys.executable), "train.steps=0"]
    environment = {**os.environ, "MOOTRON_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "recipe recipe.yaml" in done.stderr and "train.steps" in done.stderr


def test_entrypoint() -> None:
    words = entrypoint("sent", "other@5", "python")
    assert words == ["python", "-m", "cluster", "train", "recipe.yaml", "--name", "sent", "--address", "auto", "--from", "other@5"]
