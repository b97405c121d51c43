"""A table of a report, as rows of words: the markdown and the HTML page show the same."""

from __future__ import annotations

from dataclasses import dataclass

DASH = "-"


@dataclass(frozen=True)
class Table:
    """A table and what stands above it; `text` are its columns of words, the others hold figures."""

    title: str
    words: str
    header: list[str]
    rows: list[list[str]]
    text: tuple[int, ...] = (0,)


def number(value: float | None, form: str) -> str:
    """The figure, or a dash where there is none."""
    return DASH if value is None else format(value, form)
