"""Hugging Face datasets by name (`path`), configuration (`subset`), `revision`, `files` and `split`, or a local folder in their layout.

With `max_megabytes` the dataset is streamed and its beginning is taken: drawing a fair sample would download all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources.part import Entry, Part

_ROWS = 4096


def list_parts(source: SourceConfig) -> list[Part]:
    """Ranges of 4,096 rows; one part when only the beginning is taken.

    Raises:
        DataError: the package, the dataset, the split or the text field is missing, or there is no network.
    """
    name = f"{source.path}/{source.subset or ''}/{source.split}"
    if source.files is not None or source.revision is not None:
        name = f"{name}/{source.revision or ''}/{','.join(source.files or [])}"
    if source.max_megabytes is not None:
        return [Part(source.name, (Entry(name, name, "", size=int(source.max_megabytes * 1e6)),))]
    dataset = _load(source, streaming=False)
    if source.text_field not in dataset.column_names:
        columns = ", ".join(dataset.column_names)
        raise DataError(f"source '{source.name}': text_field '{source.text_field}' is not a column of {source.path}; columns: {columns}")
    rows = len(dataset)
    starts = range(0, rows, _ROWS)
    return [Part(source.name, (Entry(name, name, "", start=start, stop=min(start + _ROWS, rows)),)) for start in starts]


def read_part(source: SourceConfig, part: Part) -> Iterator[Document]:
    """One document a row, each a group of its own."""
    (entry,) = part.entries
    rows = _range(source, entry) if source.max_megabytes is None else _beginning(source, entry.size)
    for number, text in rows:
        if text and text.strip():
            key = f"{entry.key}:{number}"
            yield Document(key, key, text)


def _range(source: SourceConfig, entry: Entry) -> Iterator[tuple[int, str]]:
    dataset = _load(source, streaming=False)
    for number, row in enumerate(dataset.select(range(entry.start, entry.stop)), entry.start):
        yield number, row[source.text_field]


def _beginning(source: SourceConfig, budget: int) -> Iterator[tuple[int, str]]:
    for number, row in enumerate(_load(source, streaming=True)):
        if source.text_field not in row:
            raise DataError(f"source '{source.name}': text_field '{source.text_field}' is not a column; columns: {', '.join(row)}")
        text = row[source.text_field] or ""
        budget -= len(text.encode())
        if budget < 0:
            return
        yield number, text


def _load(source: SourceConfig, streaming: bool) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(f"source '{source.name}' of kind hugging_face needs the package datasets: pip install datasets") from None
    datasets.disable_progress_bars()
    try:
        files = None if source.files is None else {source.split: source.files}
        return datasets.load_dataset(
            str(source.path), source.subset, data_files=files, revision=source.revision, split=source.split, streaming=streaming
        )
    except Exception as fault:  # the library raises dozens of types for a wrong name, split or network
        mend = (
            "check path, subset, files and split, and the network; without one, fetch the files elsewhere and use kind parquet or jsonl"
            if not Path(str(source.path)).exists()
            else "check path, subset, files and split"
        )
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise DataError(f"source '{source.name}': dataset '{source.path}' cannot be loaded: {reason}; {mend}") from None
