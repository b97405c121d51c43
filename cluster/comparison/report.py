"""The report of a comparison: report.md with its tables, report.html with the same and plots, in the comparison's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cluster.comparison.curves import Band, over_figure, over_steps
from cluster.comparison.facts import facts
from cluster.comparison.matching import Measure
from cluster.comparison.results import RecipeResult, RunResult
from cluster.comparison.svg import STYLE, line_plot
from cluster.comparison.table import Table
from cluster.comparison.tables import tables
from cluster.markdown import table as markdown_table
from data_pipeline.files import write_text

PAGE_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;"
    "background:#fff;color:#1a1a1a}table{border-collapse:collapse;display:block;overflow-x:auto;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}"
    "th{white-space:normal;vertical-align:bottom}"
    ".text{text-align:left}code{white-space:pre-wrap}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(560px,100%),1fr));gap:1em}figure{margin:0}"
    "@media (prefers-color-scheme:dark){body{background:#14171a;color:#e6e6e6}}"
)


@dataclass(frozen=True)
class Report:
    """What is told. `command`: the words that made it; `measure`: by what the recipes are matched, None: by nothing."""

    name: str
    command: str
    measure: Measure | None
    results: list[RecipeResult]

    def write(self, folder: Path) -> list[Path]:
        """Write both forms; their paths."""
        made = tables(self.results, self.measure)
        written = {folder / "report.md": self._markdown(made), folder / "report.html": self._page(made)}
        for path, text in written.items():
            write_text(path, text)
        return list(written)

    def _markdown(self, made: list[Table]) -> str:
        parts = [f"# Comparison {self.name}", "\n".join(f"- {fact}" for fact in facts(self.command, self.results))]
        for one in made:
            rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in one.rows]
            parts += [f"## {one.title}", one.words, markdown_table(one.header, rows, one.text)]
        return "\n\n".join([*parts, "Curves are in report.html.\n"])

    def _page(self, made: list[Table]) -> str:
        listed = "".join(f"<li>{_inline_code(fact)}</li>" for fact in facts(self.command, self.results))
        head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(self.name)}</title>"
        outcome, *others = [_html_table(one) for one in made]
        figures = "".join(f"<figure>{plot}</figure>" for plot in plots(self.results))
        body = [f"<h1>Comparison {escape(self.name)}</h1><ul>{listed}</ul>", outcome, f"<div class='plots'>{figures}</div>", *others]
        return f"<!doctype html><html lang='en'><head>{head}<style>{PAGE_STYLE}{STYLE}</style></head><body>{''.join(body)}</body></html>\n"


def plots(results: list[RecipeResult]) -> list[str]:
    """Loss over tokens, multiply-accumulates and seconds; mean over seeds, shaded from the lowest to the highest."""

    def begun(result: RecipeResult) -> list[RunResult]:
        return [run for run in result.runs if run.curves.held_out or run.curves.train]

    def curves(draw: Callable[[RecipeResult, list[RunResult]], Band]) -> dict[str, Band]:
        return {result.label: draw(result, begun(result)) for result in results}

    def held_out(runs: list[RunResult]) -> list[dict[int, float]]:
        return [run.curves.held_out for run in runs]

    over_tokens = curves(lambda result, runs: over_steps(held_out(runs), result.tokens_per_step))
    over_macs = curves(lambda _, runs: over_figure(held_out(runs), [run.curves.macs for run in runs]))
    in_time = curves(lambda _, runs: over_figure(held_out(runs), [run.curves.seconds for run in runs]))
    training = curves(lambda result, runs: over_steps([run.curves.train for run in runs], result.tokens_per_step))
    loss, macs = "nats a token", "multiply-accumulates of training (forward and backward)"
    return [
        line_plot("Held-out loss over tokens", "tokens", loss, over_tokens),
        line_plot("Held-out loss over multiply-accumulates", macs, loss, over_macs, log_x=True),
        line_plot("Held-out loss over time", "seconds of training steps", loss, in_time),
        line_plot("Training loss over tokens", "tokens", loss, training, log_x=True),
    ]


def _html_table(one: Table) -> str:
    head = _html_row(one, "th", one.header)
    rows = "".join(_html_row(one, "td", row) for row in one.rows)
    return f"<h2>{escape(one.title)}</h2><p>{_inline_code(one.words)}</p><table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _html_row(one: Table, tag: str, cells: list[str]) -> str:
    marks = [' class="text"' if place in one.text else "" for place in range(len(cells))]
    return f"<tr>{''.join(f'<{tag}{mark}>{escape(cell)}</{tag}>' for mark, cell in zip(marks, cells, strict=True))}</tr>"


def _inline_code(text: str) -> str:
    """Text in which one `quoted` part is code."""
    before, tick, rest = escape(text).partition("`")
    code, _, after = rest.partition("`")
    return f"{before}<code>{code}</code>{after}" if tick else before
