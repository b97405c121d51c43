"""A run's folder deleted, with what is told of it before. Never that of a run at work."""

from __future__ import annotations

from cluster.checkpoints import local_checkpoints
from cluster.disk import bytes_below, delete, size_words
from cluster.errors import ClusterError
from cluster.run_lock import RunLock
from cluster.run_status import AT_WORK, status_of
from distributed.errors import RunError
from distributed.run_folder import RunFolder, data_folder

_REFUSAL = "run '{name}' is at work ({who}); nothing is removed"


def check_at_rest(run: RunFolder) -> None:
    """Refuse a run that some process works on.

    Raises:
        ClusterError: naming its state, and how to end it.
    """
    state = status_of(run).state
    if state in AT_WORK:
        end = f"./launch.sh stop {run.name}" if run.comparison is None else f"Ctrl-C in comparison '{run.comparison.name}'"
        raise ClusterError(f"run '{run.full_name}' is at work (state: {state}); end it first with {end}")


def what_goes(run: RunFolder) -> list[str]:
    """Lines that name what a removal deletes, with its bytes, and what it leaves."""
    found, state = local_checkpoints(run), status_of(run)
    steps = f" (steps {', '.join(str(checkpoint.step) for checkpoint in found)})" if found else ""
    lines = [
        f"run {run.full_name}, {state.state} at step {state.step or 0}: {run.path}, {size_words(bytes_below(run.path))}",
        f"  checkpoints: {len(found)}{steps}, {size_words(sum(checkpoint.n_bytes for checkpoint in found))}",
    ]
    if run.comparison is not None:
        lines.append(f"  the ./launch.sh compare of '{run.comparison.name}' would train it again")
    try:
        recipe = run.recipe()
    except RunError:  # of another version: it can be removed all the same
        return lines
    if recipe.checkpoint.address is not None:
        lines.append(f"  its checkpoints at {recipe.checkpoint.address.rstrip('/')}/{run.name} stay; remove them there")
    return [*lines, f"  its data set {data_folder(recipe)} stays"]


def remove(run: RunFolder) -> None:
    """Delete a run's folder.

    Raises:
        RunError: it is at work. ClusterError: something in it cannot be deleted.
    """
    with RunLock(run.comparison or run, _REFUSAL):
        try:
            for entry in sorted(run.path.iterdir(), key=lambda entry: entry == run.recipe_path):
                delete(entry)  # the recipe last: what is interrupted is still a run, which can be removed
            run.path.rmdir()
        except OSError as fault:
            raise ClusterError(f"{fault.filename} cannot be removed: {fault.strerror}; the rest of {run.path} may be there still") from None
