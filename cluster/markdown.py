"""Markdown tables, of reports and of benches. Standard library only: benches run where nothing but torch is installed."""

from __future__ import annotations

from collections.abc import Collection


def table(header: list[str], rows: list[list[str]], words: Collection[int] = (0,)) -> str:
    """A markdown table; the columns `words` are text, the others are figures."""
    return "\n".join([head(header, words), *map(line, rows)])


def head(header: list[str], words: Collection[int] = (0,)) -> str:
    """Its first two lines, for a table whose rows come one after the other."""
    return "\n".join([line(header), line(["---" if place in words else "---:" for place in range(len(header))])])


def line(cells: list[str]) -> str:
    """One row."""
    return "| " + " | ".join(cells) + " |"
