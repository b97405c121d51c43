"""The Python source installed on this machine: standard library and packages. Real code, no download, any machine."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources.part import Entry, Part, file_entry, pack
from data_pipeline.sources.trees import read_text, sample_files, walk

_MAX_FILE_BYTES = 1_000_000
# Tables and embedded data, not code that people wrote.
_MAX_LINE = 2_000


def list_parts(source: SourceConfig, seed: int) -> list[Part]:
    """Every .py file of the running interpreter's libraries up to 1 MB; a group is a top-level package or module.

    Raises:
        DataError: this interpreter has no readable source files.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for root, excluded in library_roots():
        for path, key in walk(root, (".py",), excluded):
            entry = file_entry(path, key, key.split("/", 1)[0].removesuffix(".py"))
            if 0 < entry.size <= _MAX_FILE_BYTES and key not in seen:
                seen.add(key)
                entries.append(entry)
    if not entries:
        raise DataError(f"source '{source.name}': no Python source files are installed here; use kind text, code or jsonl with a path")
    return pack(source.name, sample_files(entries, source, seed))


def library_roots() -> list[tuple[Path, frozenset[Path]]]:
    """(folder, folders below it that are listed by themselves): packages first, then the standard library."""
    names = ("purelib", "platlib", "stdlib", "platstdlib")
    folders = list(dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in names))
    roots = []
    for folder in folders:
        if folder.is_dir():
            inner = [other for other in folders if other != folder and other.is_relative_to(folder)]
            # A system interpreter keeps packages of its own below the standard library.
            inner += [folder / "site-packages", folder / "dist-packages"] if folder == Path(sysconfig.get_path("stdlib")).resolve() else []
            roots.append((folder, frozenset(inner)))
    return roots


def read_part(part: Part) -> Iterator[Document]:
    """One document a file; data disguised as code (very long lines) is left out."""
    for entry in part.entries:
        text = read_text(entry)
        if text is not None and max(map(len, text.splitlines()), default=0) <= _MAX_LINE:
            yield Document(entry.key, entry.group, text)
