"""From the words of the command to a report: check, train what is missing, write."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from cluster.comparison.entries import Comparison, read_comparison
from cluster.comparison.matching import Cost, Measure, check_matched, cost_of
from cluster.comparison.progress import ProgressLine
from cluster.comparison.report import Report
from cluster.comparison.results import RecipeResult, check_records, gather
from cluster.comparison.runners import open_runner, ray_installed
from cluster.comparison.schedule import StopRequest, is_finished, train_all
from cluster.comparison.terms import check_begun, check_changes, check_equal_terms
from cluster.corpus import ensure_corpus
from cluster.exit_codes import DONE, FAILED, RESUME_ME
from cluster.run_lock import RunLock
from distributed.run_folder import RunFolder
from distributed.start_rules import recorded_choices

REFUSAL = (
    "comparison '{name}' is already at work ({who}); ./launch.sh status shows its runs; wait for it, or choose another name with --name"
)


@dataclass(frozen=True)
class Request:
    """What was asked. `tolerance` None: not matched; `seconds` None: to the end."""

    words: list[str]
    n_seeds: int
    name: str | None
    measure: Measure
    tolerance: float | None
    seconds: float | None
    local: bool
    address: str | None


def carry_out(request: Request, command: str, console: Console) -> int:
    """Do it; returns the exit code (cluster/exit_codes.py).

    Raises:
        ClusterError, RunError, DataError: the recipes are wrong, not on equal terms, or not matched; nothing has begun then.
    """
    stop = StopRequest(request.seconds)
    check_changes(request.words)
    comparison = read_comparison(request.words, request.n_seeds, request.name)
    check_equal_terms(comparison.recipes)
    for recipe in comparison.recipes.values():
        recorded_choices(recipe)
    costs = {label: cost_of(recipe) for label, recipe in comparison.recipes.items()}
    console.print(cost_table(costs))
    if request.tolerance is not None:
        check_matched(costs, comparison.paths, request.measure, request.tolerance)
    for entry in comparison.entries:
        check_begun(entry)
        check_records(entry)
    local = request.local or not ray_installed()
    with RunLock(RunFolder(comparison.folder), REFUSAL):
        ensure_corpus(comparison.entries[0].recipe, console, use_ray=not local)
        if not all(map(is_finished, comparison.entries)):
            # Signals after Ray, which sets handlers of its own when it starts.
            with open_runner(local, request.address) as runner, stop, ProgressLine(comparison.entries, console) as line:
                train_all(comparison.entries, runner, stop, line)
        results = gather(comparison)
        paths = Report(comparison.name, command, None if request.tolerance is None else request.measure, results).write(comparison.folder)
    code = conclude(comparison, results, command, console)
    console.print(f"report: {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)
    return code


def cost_table(costs: dict[str, Cost]) -> Table:
    """Parameters and multiply-accumulates a token of every recipe."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe")
    for name in ("parameters", "active, every visit", "MACs a token"):
        table.add_column(name, justify="right")
    for label, cost in costs.items():
        table.add_row(label, f"{cost.parameters:,}", f"{cost.active:,}", f"{cost.macs_per_token:,.0f}")
    return table


def conclude(comparison: Comparison, results: list[RecipeResult], command: str, console: Console) -> int:
    """Say what is not finished and how to go on."""
    finished = sum(len(result.finished) for result in results)
    console.print(f"{finished} of {len(comparison.entries)} runs of {comparison.name} finished", highlight=False)
    troubles = [(result.label, run.seed, run.trouble) for result in results for run in result.runs if run.trouble is not None]
    for label, seed, trouble in troubles:
        console.print(f"  {label}-s{seed}: {trouble}", highlight=False, markup=False, soft_wrap=True)
    if not troubles:
        return DONE
    console.print(f"go on with the same command: {command}", highlight=False, markup=False, soft_wrap=True)
    return FAILED if any(trouble.startswith("failed") for _, _, trouble in troubles) else RESUME_ME
