"""Records with a text field: JSON lines (plain, gzip, zstandard) and parquet; every record is a group of its own."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.documents import Document, rank_of
from data_pipeline.errors import DataError
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources.part import Entry, Part, file_entry
from data_pipeline.sources.trees import walk

_SUFFIXES = {"jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"), "parquet": (".parquet",)}
_RANGE_BYTES = 64 << 20


def list_parts(source: SourceConfig, seed: int) -> list[Part]:
    """A part is 64 MB of a plain .jsonl, a whole compressed file, or a row group of a parquet file.

    Raises:
        DataError: there is no such file, or it is not parquet.
    """
    root = Path(source.path or "").expanduser().absolute()
    suffixes = tuple(source.suffixes or _SUFFIXES[source.kind])
    if not root.exists():
        raise DataError(f"source '{source.name}': path {root} does not exist; give a {source.kind} file or a folder of them")
    paths = [(str(root), root.name)] if root.is_file() else list(walk(root, suffixes))
    if not paths:
        raise DataError(f"source '{source.name}': no file below {root} ends in {', '.join(suffixes)}; set suffixes or another path")
    entries: list[Entry] = []
    for path, key in paths:
        entries.extend(_ranges(source, Path(path), key))
    entries.sort(key=lambda entry: (rank_of(seed, source.name, entry.key), entry.key, entry.start))
    return [Part(source.name, (entry,)) for entry in entries]


def _ranges(source: SourceConfig, path: Path, key: str) -> Iterator[Entry]:
    if source.kind == "parquet":
        for group in range(_parquet(source, path).num_row_groups):
            yield file_entry(path, key, "", group, group + 1)
    elif path.suffix in (".gz", ".zst"):
        yield file_entry(path, key, "")
    else:
        size = path.stat().st_size
        for start in range(0, size, _RANGE_BYTES):
            yield file_entry(path, key, "", start, min(start + _RANGE_BYTES, size))


def read_jsonl(source: SourceConfig, part: Part) -> Iterator[Document]:
    """One document a line. A plain file's lines belong to the range in which they begin, and are named by their offset.

    Raises:
        DataError: a line is not JSON or lacks the text field.
    """
    for entry in part.entries:
        path = entry.open_path()
        lines = _plain_lines(path, entry) if entry.stop else enumerate(_decompressed(path))
        for place, line in lines:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                raise DataError(f"{path}: the record at {place} is not JSON; mend or remove it") from None
            key = f"{entry.key}:{place}"
            if text := _text_of(source, record, f"{path}: the record at {place}"):
                yield Document(key, key, text)


def _plain_lines(path: Path, entry: Entry) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        if entry.start:
            file.seek(entry.start - 1)
            file.readline()  # the line that began in the range before
        place = file.tell()
        while place < entry.stop:
            line = file.readline()
            if not line:
                return
            yield place, line
            place += len(line)


def _decompressed(path: Path) -> Iterator[bytes]:
    file, faults = _open_compressed(path)
    try:
        with file:
            yield from file
    except faults as fault:
        raise DataError(f"{path} cannot be decompressed: {fault}; fetch it again") from None


def _open_compressed(path: Path) -> tuple[io.BufferedIOBase, tuple[type[Exception], ...]]:
    """The file of decompressed bytes, and what reading it raises where it is damaged."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb"), (OSError, EOFError, zlib.error)
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path} needs the package zstandard: pip install zstandard, or decompress the file") from None
    stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
    return io.BufferedReader(stream), (OSError, zstandard.ZstdError)


def read_parquet(source: SourceConfig, part: Part) -> Iterator[Document]:
    """One document a row.

    Raises:
        DataError: there is no such column.
    """
    for entry in part.entries:
        path = entry.open_path()
        table = _parquet(source, path)
        row = 0
        for batch in table.iter_batches(batch_size=1024, row_groups=range(entry.start, entry.stop), columns=[source.text_field]):
            for value in batch.column(0).to_pylist():
                key = f"{entry.key}:{entry.start}:{row}"
                row += 1
                if text := _text_of(source, {source.text_field: value}, f"{path}: row {row - 1} of row group {entry.start}"):
                    yield Document(key, key, text)


def _parquet(source: SourceConfig, path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as fault:
        raise DataError(f"{path} is not a parquet file: {fault}") from None
    names = table.schema_arrow.names
    if source.text_field not in names:
        raise DataError(f"source '{source.name}': text_field '{source.text_field}' is not a column of {path}; columns: {', '.join(names)}")
    return table


def _text_of(source: SourceConfig, record: Any, place: str) -> str:
    if not isinstance(record, dict) or source.text_field not in record:
        fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"source '{source.name}': {place} has no field '{source.text_field}' ({fields}); set text_field")
    text = record[source.text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"source '{source.name}': {place}: field '{source.text_field}' is {type(text).__name__}, not text; set text_field")
    return text if text.strip() else ""
