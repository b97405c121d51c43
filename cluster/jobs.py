"""Runs sent to a Ray cluster as Ray jobs: the code and the resolved recipe travel, runs and corpora do not."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from cluster.errors import ClusterError
from cluster.local_cluster import dashboard_address
from cluster.recipes import CODE_ROOT
from cluster.run_lock import is_held
from distributed.recipe import Recipe
from distributed.recipe_file import recipe_text
from distributed.run_folder import RunFolder, project_root

START_SECONDS = 60.0
LOG_LINES = 12
ROOMS = ("kernels", "model", "data_pipeline", "distributed", "cluster", "benchmarks", "configs")
RECIPE_FILE = "recipe.yaml"


def submit_job(recipe: Recipe, branch_from: str | None, address: str) -> str:
    """Send a run to the cluster whose dashboard is at `address`; returns the job's id.

    Raises:
        ClusterError: nothing answers there, or the cluster refuses the job.
    """
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # Ray tells of every package it sends
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


def await_start(job: str, recipe: Recipe, address: str, patience_seconds: float = START_SECONDS) -> str:
    """Wait until the job's run has begun: "at work", "finished" already, or "waiting" (for resources, or for its data).

    Raises:
        ClusterError: the job ended before its run began; the message carries the job's last words.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)
    run = RunFolder.named(recipe.name)
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if is_held(run) and run.recipe_path.exists():
            return "at work"
        status = client.get_job_status(job)
        if status.is_terminal() and status != JobStatus.SUCCEEDED:
            words = "\n".join(client.get_job_logs(job).strip().splitlines()[-LOG_LINES:])
            raise ClusterError(f"job {job} ended before its run began; its last words:\n{words}")
        if status.is_terminal():
            return "finished"
        time.sleep(0.5)
    return "waiting"


def entrypoint(name: str, branch_from: str | None, python: str) -> list[str]:
    """The job's command, run in the staged folder."""
    words = [python, "-m", "cluster", "train", RECIPE_FILE, "--name", name, "--address", "auto"]
    return words + (["--from", branch_from] if branch_from else [])


def stage(folder: Path, recipe: Recipe) -> None:
    """Put what the job needs into `folder`."""
    for room in ROOMS:
        shutil.copytree(CODE_ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / RECIPE_FILE).write_text(recipe_text(recipe))
