"""The manifest of a checkpoint: what it holds, where, and the digests that prove it whole.

    step-00000100/
      manifest.json                    written last and renamed into place: no manifest, no checkpoint
      rank-00000-of-00002.safetensors  one-dimensional tensors "<state>/<parameter>", buffers and random states
      rank-00001-of-00002.safetensors

A parameter, its fp32 master and each moment is a global tensor with a name. A piece says which range of which box of it
a file holds; over all files every entry of every state appears exactly once, whatever the layout of the run was.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.sharding import Box

FORMAT = 1
MANIFEST = "manifest.json"


class DamagedError(Exception):
    """A checkpoint is not what was written; the message names the file."""


class Record(BaseModel):
    """Base of the manifest's parts: what is unknown is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Piece(Record):
    """Entries `start:stop` of a flattened box of parameter `name`, for each of `states`, in file `file`."""

    name: str
    file: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int = Field(ge=0)
    stop: int
    states: list[str]

    @property
    def place(self) -> tuple[Box, int, int]:
        """The piece's box and range."""
        return Box(self.global_shape, self.offset, self.shape), self.start, self.stop


class FileRecord(Record):
    """Size and SHA-256 of a file (`sha256sum` gives the same)."""

    size: int
    sha256: str


class Meta(Record):
    """What belongs to a checkpoint besides tensors; equal on all ranks.

    `applied_steps` is the optimizer's own counter: steps with a gradient that was not finite do not count in it.
    """

    applied_steps: int = Field(ge=0)
    tokens: int = Field(ge=0)
    data: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


class Manifest(Record):
    """See the head of this file."""

    format: int = FORMAT
    step: int = Field(ge=0)
    meta: Meta
    versions: dict[str, str]
    layout: dict[str, int]
    pieces: list[Piece]
    buffers: dict[str, str]
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if not re.fullmatch(r"rank-\d{5}-of-\d{5}\.safetensors", name):
                raise ValueError(f"'{name}' is not a checkpoint file's name")
        return files

    @property
    def world(self) -> int:
        """How many ranks wrote it."""
        return self.layout["world"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Global shape of every parameter."""
        return {piece.name: piece.global_shape for piece in self.pieces}


def rank_file(rank: int, world: int) -> str:
    """Name of the file that rank `rank` of `world` writes."""
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def manifest_text(manifest: Manifest) -> str:
    """JSON of a manifest with a digest of itself, so that a flipped bit in it shows."""
    body = manifest.model_dump(mode="json")
    return json.dumps({"manifest": body, "sha256": _digest(body)}, indent=1)


def read_manifest(path: Path) -> Manifest:
    """The manifest of checkpoint folder `path`.

    Raises:
        DamagedError: it is not JSON, not a manifest, or not as it was written.
    """
    file = path / MANIFEST
    try:
        wrapped = json.loads(file.read_bytes())
        body = wrapped["manifest"]
        if _digest(body) != wrapped["sha256"]:
            raise DamagedError(f"{file}: its digest does not match")
        return Manifest.model_validate(body)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as fault:
        raise DamagedError(f"{file}: {fault}") from None


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
