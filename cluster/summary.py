"""The end of a run as a page: losses against the baselines, speed, where the time went, expert load, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.events import FAILURES, RunEvent, read_events, restarts
from distributed.figures import perplexity
from distributed.run_folder import RunFolder
from distributed.scored_windows import windows_words
from distributed.summary import read_summary

_BAR_WIDTH = 24


def print_summary(run: RunFolder, console: Console) -> None:
    """Render summary.json of `run`; works without a terminal (plain text, no colour).

    Raises:
        RunError: the run has no summary.
    """
    console.print(page(read_summary(run), read_events(run)))


def page(summary: dict[str, Any], events: Sequence[RunEvent] = ()) -> RenderableType:
    """The whole page of a summary, and what happened to the run's groups."""
    parts: list[RenderableType] = [_headline(summary), losses(summary["losses"]), speed(summary)]
    if summary["depth"]:
        parts.append(depth(summary["depth"]))
    if summary["parts"]:
        parts.append(times(summary["parts"]))
    if summary["goodput"]["wall"] > 0:
        parts.append(wall_time(summary["goodput"]))
    if restarts(events):
        parts.append(restart_table(events))
    if summary["load"]:
        parts.append(load(summary["load"]))
    parts.append(commands(summary))
    return Group(*parts)


def _headline(summary: dict[str, Any]) -> RenderableType:
    words = Text(f"Run {summary['run']} {summary['state']} at step {summary['step']:,} of {summary['steps']:,}", style="bold")
    details = f"{summary['tokens_seen']:,} tokens seen"
    if summary["parameters"]:
        details += f", {summary['parameters']:,} parameters"
    if summary["world"]:
        details += f", {_count(summary['world'], 'worker')}, expert parallelism {summary['expert_parallel']}"
    return Panel(Group(words, Text(details), verdict(summary["losses"])), expand=False)


def verdict(figures: dict[str, Any]) -> Text:
    """How far below the unigram model and how far from the bigram model, in one line."""
    below, above = figures["below_unigram"], figures["above_bigram"]
    if below is None:
        return Text("No held-out loss yet.")
    words = Text()
    words.append(f"{abs(below):.3f} nats {'below' if below >= 0 else 'ABOVE'} the unigram model", style="green" if below >= 0 else "red")
    if above is not None:
        words.append(", ")
        words.append(
            f"{abs(above):.3f} nats {'above' if above >= 0 else 'below'} the bigram model", style="yellow" if above >= 0 else "green"
        )
    return words


def losses(figures: dict[str, Any]) -> Table:
    """Held-out loss of the model and of both baselines, over the same windows."""
    table = _table(f"Loss (held-out: {windows_words(figures['windows'])})", "", "nats a token", "perplexity", "model's gap")
    rows = [("unigram model, held-out", figures["unigram"]), ("bigram model, held-out", figures["bigram"])]
    for name, nats in rows:
        if nats is not None:
            gap = "" if figures["held_out"] is None else f"{figures['held_out'] - nats:+.3f}"
            table.add_row(name, f"{nats:.4f}", _perplexity(nats), gap)
    if figures["held_out"] is not None:
        table.add_row("this model, held-out", f"{figures['held_out']:.4f}", _perplexity(figures["held_out"]), "", style="bold")
    if len(figures["by_source"]) > 1:
        for source, nats in figures["by_source"].items():
            table.add_row(f"  {source}", _number(nats, ".4f"), _perplexity(nats), "")
    if figures["train"] is not None:
        table.add_row("this model, train (last interval)", f"{figures['train']:.4f}", _perplexity(figures["train"]), "")
    return table


def speed(summary: dict[str, Any]) -> Table:
    """Rates over the run and memory."""
    table = _table("Speed", "", "whole run")
    rates, memory = summary["speed"], summary["memory"]
    table.add_row("tokens a second", _number(rates["tokens_per_second"], ",.0f"))
    table.add_row("seconds a step", _number(rates["step_seconds"], ".3f"))
    table.add_row("model FLOP use", _number(rates["model_flop_use"], ".1%"))
    table.add_row("memory of the largest worker", _gib(memory["host_bytes_max"]))
    if memory["device_bytes_max"]:
        table.add_row("GPU memory of the fullest worker", _gib(memory["device_bytes_max"]))
    return table


def times(parts: dict[str, float]) -> Table:
    """Where a step's time went; the parts add up to all of it."""
    return _shares("Where the time of a step went (whole run, mean of the workers)", parts, "seconds a step", ".3f")


def wall_time(goodput: dict[str, Any]) -> Table:
    """Where the time since the run was asked for went."""
    kinds = {"productive steps": goodput["productive"], **{name.replace("_", " "): seconds for name, seconds in goodput["lost"].items()}}
    return _shares(f"Wall time {goodput['wall']:,.0f} s, goodput {goodput['goodput']:.1%}", kinds, "seconds", ",.1f")


def restart_table(events: Sequence[RunEvent]) -> Table:
    """Every failure and growth, and what each recovery took."""
    table = _table(f"Restarts: {restarts(events)}", "what happened", "after step", "seconds lost", "workers then")
    for event in events:
        if event.kind in FAILURES or event.kind == "grows":
            who = f", rank {event.rank} on {event.host}" if event.rank is not None else ""
            table.add_row(f"{event.kind}{who}", _number(event.step, "d"), "", "" if event.world is None else str(event.world))
        elif event.kind == "recovered":
            table.add_row("  recovered", _number(event.step, "d"), f"{event.seconds:.1f}", str(event.world))
    return table


def depth(figures: dict[str, float]) -> Table:
    """How deep passes went, of a model that draws its repeats or whose tokens halt."""
    table = _table("Depth", "", "whole run")
    forms = {
        "repeats": ("repeats drawn a step", ".2f"),
        "mean_passes": ("passes a token took", ".2f"),
        "saved_share": ("multiply-accumulates saved by halting", ".1%"),
    }
    for name, value in figures.items():
        label, form = forms[name]
        table.add_row(label, _number(value, form))
    return table


def load(figures: dict[str, Any]) -> Table:
    """Expert load of the last interval."""
    table = _table("Expert load (last interval)", "", "", "even would be")
    table.add_row("experts without a route in a visit", _number(figures["dead_share"], ".1%"), "0%")
    table.add_row("experts without a route in any visit", _number(figures["never_used_share"], ".1%"), "0%")
    table.add_row("routing entropy", _number(figures["routing_entropy"], ".3f"), "1")
    table.add_row("busiest expert over the mean", _number(figures["expert_imbalance"], ".2f"), "1")
    table.add_row("busiest rank over the mean", _number(figures["rank_imbalance"], ".2f"), "1")
    return table


def commands(summary: dict[str, Any]) -> Table:
    """What one may type next."""
    run, further = summary["run"], summary["steps"] * 2
    table = _table("Next", "", "")
    if summary["checkpoint"]:
        table.add_row("checkpoint kept", str(summary["checkpoint"]))
    table.add_row("look", "./launch.sh tensorboard")
    table.add_row("evaluate", f"./launch.sh eval {run}")
    table.add_row("generate", f"./launch.sh generate {run} --prompt 'def main('")
    if summary["state"] == "stopped":
        table.add_row("resume", f"./launch.sh resume {run}")
    table.add_row("go on", f"./launch.sh resume {run} train.steps={further}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns), expand=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or not any(columns) else "right", overflow="fold")
    return table


def _shares(title: str, seconds: dict[str, float], unit: str, form: str) -> Table:
    """Parts of a whole, largest first, those that round to nothing left out of the list but not of the sum."""
    table = _table(title, "", unit, "share", "")
    whole = sum(seconds.values())
    for name, part in sorted(seconds.items(), key=lambda item: -item[1]):
        share = part / whole if whole > 0 else 0.0
        if share >= 0.0005:
            table.add_row(name, format(part, form), f"{share:.1%}", "█" * round(share * _BAR_WIDTH))
    table.add_row("all", format(whole, form), "100.0%", "", style="bold")
    table.columns[3].justify = "left"
    return table


def _number(value: float | None, form: str) -> str:
    return "not known" if value is None else format(value, form)


def _gib(n_bytes: float | None) -> str:
    return "not known" if n_bytes is None else f"{n_bytes / 2**30:.2f} GiB"


def _perplexity(nats: float | None) -> str:
    return "not known" if nats is None else f"{perplexity(nats):,.2f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
