"""Trees of text or code files; a single large text file is cut into documents at blank lines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline.documents import Document, rank_of
from data_pipeline.errors import DataError
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources.part import Entry, Part, file_entry, pack

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex")
CODE_SUFFIXES = (
    *(".py", ".pyx", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".rs", ".go", ".java", ".kt", ".scala", ".js", ".ts", ".tsx"),
    *(".hs", ".ml", ".rb", ".php", ".pl", ".lua", ".sh", ".sql", ".html", ".css", ".s", ".asm", ".jl", ".r", ".swift", ".zig"),
)
_SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
_PIECE_BYTES = 64 << 10


def list_parts(source: SourceConfig, seed: int) -> list[Part]:
    """Files below `path` with one of the suffixes; a group is a first-level folder, or a file that lies beside them.

    Raises:
        DataError: there is no such path, or no such file below it.
    """
    root = Path(source.path or "").expanduser().absolute()
    if root.is_file():
        return pack(source.name, [file_entry(root, root.name, "")])
    if not root.is_dir():
        raise DataError(f"source '{source.name}': path {root} does not exist; give a folder or a file")
    suffixes = tuple(source.suffixes or (TEXT_SUFFIXES if source.kind == "text" else CODE_SUFFIXES))
    entries = [file_entry(path, key, key.split("/", 1)[0]) for path, key in walk(root, suffixes)]
    if not entries:
        raise DataError(f"source '{source.name}': no file below {root} ends in {', '.join(suffixes)}; set suffixes or another path")
    return pack(source.name, sample_files(entries, source, seed))


def walk(root: Path, suffixes: tuple[str, ...], skipped: frozenset[Path] = frozenset()) -> Iterator[tuple[str, str]]:
    """(path, name below `root` with '/') of plain files in sorted order.

    Hidden folders, caches, links to folders and the folders in `skipped` are left out.
    """
    prefix = len(str(root)) + 1
    left_out = {str(folder) for folder in skipped}
    for folder, folders, names in os.walk(root):
        shown = (name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        folders[:] = sorted(name for name in shown if os.path.join(folder, name) not in left_out)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.endswith(suffixes) and os.path.isfile(path):
                yield path, path[prefix:].replace(os.sep, "/")


def sample_files(entries: Iterable[Entry], source: SourceConfig, seed: int) -> list[Entry]:
    """Entries in hashed order, cut off at `max_megabytes`: a fair sample, and any stretch of the stream is one too."""
    ordered = sorted(entries, key=lambda entry: (rank_of(seed, source.name, entry.key), entry.key))
    if source.max_megabytes is None:
        return ordered
    budget = int(source.max_megabytes * 1e6)
    chosen = []
    for entry in ordered:
        if entry.size <= budget:
            chosen.append(entry)
            budget -= entry.size
    if not chosen:
        raise DataError(f"source '{source.name}': max_megabytes {source.max_megabytes} is below the size of every file; raise it")
    return chosen


def read_part(part: Part) -> Iterator[Document]:
    """One document a file; a file that is itself the source (empty group) becomes pieces, each its own group."""
    for entry in part.entries:
        text = read_text(entry)
        if text is None:
            continue
        if entry.group:
            yield Document(entry.key, entry.group, text)
        else:
            for number, piece in enumerate(cut_at_blank_lines(text)):
                yield Document(f"{entry.key}#{number}", f"{entry.key}#{number}", piece)


def read_text(entry: Entry) -> str | None:
    """The file's text; None if it is empty, binary (a zero byte) or not UTF-8."""
    data = entry.open_path().read_bytes()
    if b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def cut_at_blank_lines(text: str) -> Iterator[str]:
    """Pieces of about 64 KiB that end at a blank line, else at a line's end; together they are the text."""
    start = 0
    while start < len(text):
        stop = start + _PIECE_BYTES
        if stop < len(text):
            blank = text.rfind("\n\n", start, stop)
            line = text.rfind("\n", start, stop)
            stop = blank + 2 if blank > start else line + 1 if line > start else stop
        piece = text[start:stop]
        if piece.strip():
            yield piece
        start = stop
