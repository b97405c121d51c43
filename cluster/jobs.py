"""Runs sent to a Ray cluster as Ray jobs: the code and the resolved recipe travel, runs and corpora do not."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

from cluster.errors import ClusterError
from cluster.local_cluster import dashboard_address
from cluster.recipes import CODE_ROOT
from distributed.recipe import Recipe
from distributed.run_folder import project_root

ROOMS = ("kernels", "model", "data_pipeline", "distributed", "cluster", "benchmarks", "configs")
RECIPE_FILE = "recipe.yaml"


def submit_job(recipe: Recipe, branch_from: str | None, address: str) -> str:
    """Send a run to the cluster whose dashboard is at `address`; returns the job's id.

    Raises:
        ClusterError: nothing answers there, or the cluster refuses the job.
    """
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    words = entrypoint(recipe.name, branch_from, sys.executable if address == dashboard_address() else "python")
    with tempfile.TemporaryDirectory(prefix="mootron-submit-") as staging:
        stage(Path(staging), recipe)
        try:
            client = JobSubmissionClient(address)
            job: str = client.submit_job(
                entrypoint=shlex.join(words),
                runtime_env={"working_dir": staging, "env_vars": {"MOOTRON_HOME": str(project_root())}},
                metadata={"run": recipe.name},
            )
        except (ConnectionError, RuntimeError, ValueError) as fault:
            raise ClusterError(f"the Ray cluster at {address} did not take the run: {fault}; --address is that of its dashboard") from None
    return job


def entrypoint(name: str, branch_from: str | None, python: str) -> list[str]:
    """The job's command, run in the staged folder."""
    words = [python, "-m", "cluster", "train", RECIPE_FILE, "--name", name, "--address", "auto"]
    return words + (["--from", branch_from] if branch_from else [])


def stage(folder: Path, recipe: Recipe) -> None:
    """Put what the job needs into `folder`."""
    for room in ROOMS:
        shutil.copytree(CODE_ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
