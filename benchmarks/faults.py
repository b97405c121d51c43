"""A fixed job under a seeded storm of faults against the same job undisturbed: goodput, time to recover, samples, losses.

    ./launch.sh bench faults [--faults 8] [--seed 0] [--workers 2] [--steps-between 4] [--log FILE]

A small MoEUT on the Python source of this machine, with expert parallelism over the workers and a checkpoint every three steps, runs twice
under the real launcher, supervisor and Ray: once in peace, once with a SIGKILL (or, for every eighth, a SIGSTOP) to a random rank in a
random phase soon after each start. Exit code 1 if the two runs differ in samples or losses, or if a fault did not strike.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.fault_injection import Fault
from benchmarks.fault_storm import TARGET, draw_storm, samples_of, write_storm
from cluster.corpus import ensure_corpus
from cluster.events import FAILURES, RunEvent, read_events
from cluster.launcher import Start, launch
from cluster.run_lock import RunLock
from cluster.sizing import plan_run
from distributed.goodput import Ledger, account
from distributed.recipe import Recipe
from distributed.recipe_file import check_recipe
from distributed.run_folder import RunFolder
from distributed.summary import run_lines

HANG_SECONDS = 15.0


def main(argv: list[str], prog: str = "./launch.sh bench faults", count: int = 8, description: str | None = None) -> int:
    """Run both, compare, print. `prog`, `count` and `description`: the command's name, its default of --faults, its help."""
    args = _parse(argv, prog, count, description)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mootron-faults-") as home:
        os.environ["MOOTRON_HOME"] = home
        storm = draw_storm(args.faults, args.workers, args.seed, args.steps_between, hang_share=args.hangs)
        recipe = _recipe(2 * args.steps_between * args.faults + 20, args.workers)
        peace = _run("peace", recipe, [], console)
        stormy = _run("storm", recipe, storm, console)
        report = compare(peace, stormy, storm)
    lines = report_lines(report)
    print("\n".join(lines))
    if args.log is not None:
        header = f"{shlex.join([*prog.split(), *argv])}, seed {args.seed}, {time.strftime('%Y-%m-%d')}"
        args.log.write_text("\n".join([header, "", *lines, "", *map(json.dumps, report["faults"])]) + "\n")
    return 0 if report["samples_equal"] and report["losses_equal"] and report["struck"] == args.faults else 1


def compare(peace: RunFolder, stormy: RunFolder, storm: list[Fault]) -> dict[str, Any]:
    """What the storm cost, and whether it changed anything."""
    expected, found = samples_of(peace), samples_of(stormy)
    events = read_events(stormy)
    failures = [event for event in events if event.kind in FAILURES]
    losses = [_figures(run, ("loss", "grad_norm")) for run in (peace, stormy)]
    return {
        "steps": len(expected),
        "struck": len(failures),
        "samples_equal": found == expected,
        "steps_with_other_samples": sum(found.get(step) != ids for step, ids in expected.items()),
        "losses_equal": losses[0] == losses[1],
        "goodput": {run.name: account(Ledger(run.path / "goodput.jsonl").events()) for run in (peace, stormy)},
        "steps_done_again": _steps_done_again(stormy),
        "recoveries": _recoveries(events, storm),
        "faults": [{"n": number, **fault.__dict__} for number, fault in enumerate(storm)],
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report for a person."""
    lines = [
        f"{report['struck']} faults struck in {report['steps']} steps",
        f"samples lost or repeated: {report['steps_with_other_samples']} steps with other samples; losses and gradient norms "
        f"{'equal to the last bit' if report['losses_equal'] else 'DIFFER'}",
        f"steps done again: {report['steps_done_again']}",
    ]
    for name, figures in report["goodput"].items():
        parts = ", ".join(f"{kind} {seconds:.0f}" for kind, seconds in figures["lost"].items() if seconds >= 0.5)
        lines.append(f"{name}: goodput {figures['goodput']:.1%} of {figures['wall']:.0f} s; lost seconds: {parts}")
    lines.append("seconds from the fault (a hang: from when it was found) to the first step beyond the last one; n, median, worst:")
    for kind, seconds in sorted(report["recoveries"]["by_kind"].items()):
        lines.append(f"  {kind:<28} {len(seconds):>4} {statistics.median(seconds):>7.1f} {max(seconds):>7.1f}")
    for part, seconds in report["recoveries"]["parts"].items():
        lines.append(f"  of it: {part:<21} {len(seconds):>4} {statistics.median(seconds):>7.1f} {max(seconds):>7.1f}")
    return lines


def _recoveries(events: list[RunEvent], storm: list[Fault]) -> dict[str, dict[str, list[float]]]:
    """Seconds to recover by signal and phase, and where they went."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    group = -1
    struck: Fault | None = None
    for event in events:
        if event.kind == "started":
            group += 1
        elif event.kind in FAILURES and group < len(storm):
            struck = storm[group]
        elif event.kind == "recovered" and struck is not None:
            by_kind[f"{struck.signal_name} in {struck.phase}"].append(event.seconds)
            for part, seconds in event.parts.items():
                parts[part].append(seconds)
    return {"by_kind": dict(by_kind), "parts": dict(parts)}


def _steps_done_again(run: RunFolder) -> int:
    """Steps that more than one group trained."""
    groups: dict[int, set[str]] = defaultdict(set)
    for path in (run.path / "samples").glob("*-00000.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("]"):
                groups[json.loads(line)[0]].add(path.name)
    return sum(len(names) - 1 for names in groups.values())


def _figures(run: RunFolder, names: tuple[str, ...]) -> dict[int, tuple[float, ...]]:
    return {line["step"]: tuple(line[name] for name in names) for line in run_lines(run) if "loss" in line}


def _run(name: str, recipe: Recipe, storm: list[Fault], console: Console) -> RunFolder:
    """One run under the launcher; `storm` empty for the one in peace."""
    recipe = recipe.model_copy(update={"name": name})
    run = RunFolder.named(recipe.name)
    with RunLock(run) as lock:
        ensure_corpus(recipe, console)
        run.create(recipe)
        write_storm(run, storm)
        code = launch(Start(run, recipe, plan_run(recipe), target=TARGET), lock, console)
    if code:
        sys.exit(f"the run '{name}' ended with code {code}: {run.read_state().get('reason')}")
    return run


def _recipe(steps: int, workers: int) -> Recipe:
    values: dict[str, Any] = {
        "name": "faults",
        "model": {
            "vocab_size": 512,
            "d_model": 32,
            "depth": {"group": 2, "repeats": 2},
            "attention": {"kind": "switchhead", "n_heads": 2, "d_head": 16, "n_experts": 3, "top_k": 2},
            "feed_forward": {"kind": "sigma_moe", "n_experts": 7, "d_expert": 16, "top_k": 3},
        },
        "data": {
            "folder": "corpora/faults",
            "sources": [{"name": "python", "kind": "installed_python", "max_megabytes": 1.0}],
            "tokenizer": {"kind": "byte_bpe", "vocab_size": 512},
            "seq_len": 32,
            "loader_workers": 0,
        },
        "train": {"steps": steps, "global_batch": 8, "micro_batch": 2, "lr": 1e-2, "precision": "fp32"},
        "expert_parallel": {"size": workers},
        "checkpoint": {"every": 3},
        "validation": {"every": 10 * steps, "windows": 2},
        "logging": {"every": 1, "heat_maps_every": 10 * steps},
        "cluster": {
            "workers": workers,
            "min_workers": workers,
            "max_failures_an_hour": 100_000,
            "max_failures_a_host": 100_000,
            "hang_seconds": HANG_SECONDS,
        },
    }
    return check_recipe(values, "bench faults")


def _parse(argv: list[str], prog: str, count: int, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=count, help=f"how many, the first 8 one for each phase (default: {count})")
    parser.add_argument("--seed", type=int, default=0, help="of the storm (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--steps-between", type=int, default=4, metavar="N", help="a fault comes N to 2N steps after a start (default: 4)")
    parser.add_argument("--hangs", type=float, default=0.125, help="share of faults that stop a rank instead (default: 0.125)")
    parser.add_argument("--log", type=Path, help="write the report to this file as well")
    return parser.parse_args(argv)
