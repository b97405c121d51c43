"""Which checkpoints a run has, without loading torch where they lie in its folder."""

from __future__ import annotations

import re

from distributed.run_folder import RunFolder


def checkpoint_steps(run: RunFolder) -> list[int]:
    """Steps of the run's checkpoints, oldest first.

    Raises:
        RunError: `checkpoint.address` cannot be served.
    """
    if run.recipe_path.is_file() and run.recipe().checkpoint.address is not None:
        from distributed import checkpoint
        from distributed.persistence import storage_of

        return sorted(checkpoint.list_checkpoints(storage_of(run.recipe(), run)))
    return sorted(int(match[1]) for path in run.checkpoints.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name)))
