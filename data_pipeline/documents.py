"""A document and the digests that name documents, parts and files; the same on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Document:
    """One text of a source.

    `key` names it within its source; `group` is what stays together when held-out documents are drawn (a package,
    a folder, or the document itself).
    """

    key: str
    group: str
    text: str


def digest_of(value: Any) -> str:
    """32 hexadecimal digits that stand for a JSON value (keys sorted, so that equal values have equal digests)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_of_bytes(data: bytes) -> bytes:
    """16 bytes that stand for a byte string."""
    return hashlib.blake2b(data, digest_size=16).digest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal: the digest that shard indices carry too."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def rank_of(seed: int, *names: str) -> int:
    """A 64-bit number that orders names fairly: every subset cut off by it is a random sample of them."""
    text = "\0".join((str(seed), *names))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
