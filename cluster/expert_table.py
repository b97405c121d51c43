"""How experts are used, as a table: a row a visit, and one for all visits of a layer."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

LEGEND = (
    "used: chosen by some token. uneven: KL to uniform, nats. top: busiest over the mean. g-: by gates. overlap: with the "
    "layer's visit before, |A&B|/|A|B|. paths: experts met over all visits, over those of one."
)

_COLUMNS = (
    ("of", "candidates", ",d"),
    ("dead", "dead", ",d"),
    ("used", "usage", ".1%"),
    ("uneven", "unevenness", ".3f"),
    ("top", "imbalance", ".2f"),
    ("g-used", "gate_usage", ".1%"),
    ("g-uneven", "gate_unevenness", ".3f"),
    ("overlap", "overlap", ".3f"),
    ("paths", "path_diversity", ".2f"),
)


def expert_table(figures: dict[str, Any]) -> Group:
    """The figures of `distributed.expert_use.ExpertUse`; columns that no row fills are left out."""
    rows = [*figures["visits"], *figures["layers"]]
    columns = [(header, name, form) for header, name, form in _COLUMNS if any(row.get(name) is not None for row in rows)]
    table = Table(title=f"Experts over {figures['tokens']:,} tokens", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for header in ("layer", "visit", *(header for header, _, _ in columns)):
        table.add_column(header, justify="right")
    for layer in figures["layers"]:
        for row in [*(visit for visit in figures["visits"] if visit["layer"] == layer["layer"]), layer]:
            cells = ["" if row.get(name) is None else format(row[name], form) for _, name, form in columns]
            whole = "visit" not in row
            table.add_row(str(row["layer"]), "all" if whole else str(row["visit"]), *cells, style="bold" if whole else None)
    return Group(table, Text(LEGEND, style="dim"))
