"""Markdown tables, of reports and of benches. Standard library only: benches run where nothing but torch is installed."""

from __future__ import annotations


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; the first column is text, the others are figures."""
    return "\n".join([head(header), *map(line, rows)])


def head(header: list[str]) -> str:
    """Its first two lines, for a table whose rows come one after the other."""
    return "\n".join([line(header), line(["---", *["---:"] * (len(header) - 1)])])


def line(cells: list[str]) -> str:
    """One row."""
    return "| " + " | ".join(cells) + " |"
