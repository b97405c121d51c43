"""Where documents come from: a source is listed as parts, and each part can be read by itself, anywhere.

part.py holds what one task reads; trees.py, installed.py, records.py and hugging_face.py one form of source each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from data_pipeline.documents import Document
from data_pipeline.source_config import SourceConfig
from data_pipeline.sources import hugging_face, installed, records, trees
from data_pipeline.sources.part import Part

__all__ = ["Part", "list_parts", "read_part"]


def list_parts(source: SourceConfig, seed: int) -> list[Part]:
    """Cut a source into parts, in an order that depends on its content names and `seed` only; those held out come last.

    Raises:
        DataError: the path is missing, unreadable or holds nothing of the kind.
    """
    held_out = source.published_held_out()
    if held_out is not None:
        apart = [dataclasses.replace(part, held_out=True) for part in list_parts(held_out, seed)]
        return list_parts(source.model_copy(update={"held_out": None}), seed) + apart
    match source.kind:
        case "installed_python":
            return installed.list_parts(source, seed)
        case "text" | "code":
            return trees.list_parts(source, seed)
        case "jsonl" | "parquet":
            return records.list_parts(source, seed)
        case "hugging_face":
            return hugging_face.list_parts(source)


def read_part(source: SourceConfig, part: Part) -> Iterator[Document]:
    """The documents of a part, always in the same order; unreadable files and empty texts are left out.

    Raises:
        DataError: an entry has changed since it was listed, or a record has no text.
    """
    if part.held_out:
        source = source.published_held_out() or source
    match source.kind:
        case "installed_python":
            return installed.read_part(part)
        case "text" | "code":
            return trees.read_part(part)
        case "jsonl":
            return records.read_jsonl(source, part)
        case "parquet":
            return records.read_parquet(source, part)
        case "hugging_face":
            return hugging_face.read_part(source, part)
