"""The manifest of a checkpoint: what it holds, where, and the digests that prove it whole.

    step-00000100/
      manifest.json                    written last and renamed into place: no manifest, no checkpoint
      rank-00000-of-00002-f3.safetensors  one-dimensional tensors "<state>/<parameter>", buffers and random states
      rank-00001-of-00002-f3.safetensors  f3: written by the third group of processes of this run (see fence.py)

A parameter, its fp32 master and each moment is a global tensor with a name. A piece says which range of which box of it
a file holds; over all files every entry of every state appears exactly once, whatever the layout of the run was.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from distributed.checkpoint.storage import Checkpoint
from distributed.errors import RunError
from model.sharding import Box

FORMAT = 2
"""1: files had SHA-256 digests and no fencing number in their names. Still read."""
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
    """Size and digest of a file: "xxh3-128:<hex>" (`xxhsum -H2` gives the same), or "sha256:<hex>".

    XXH3 because it is read at every restart and SHA-256 is slower than the disk; it finds damage, not forgery.
    """

    size: int
    digest: str

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, values: Any) -> Any:
        return {"size": values["size"], "digest": f"sha256:{values['sha256']}"} if "sha256" in values else values


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
    fence: int = 0
    pieces: list[Piece]
    buffers: dict[str, str]
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if not re.fullmatch(r"rank-\d{5}-of-\d{5}(-f\d+)?\.safetensors", name):
                raise ValueError(f"'{name}' is not a checkpoint file's name")
        return files

    @property
    def world(self) -> int:
        """How many ranks wrote it."""
        return self.layout["world"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Global shape of every parameter."""
        return {piece.name: piece.global_shape for piece in self.pieces}


def rank_file(rank: int, world: int, fence: int = 0) -> str:
    """Name of the file that rank `rank` of `world` writes; without a fencing number when nobody else can write there."""
    return f"rank-{rank:05d}-of-{world:05d}{f'-f{fence}' if fence else ''}.safetensors"


def manifest_text(manifest: Manifest) -> str:
    """JSON of a manifest with a digest of itself, so that a flipped bit in it shows."""
    body = manifest.model_dump(mode="json")
    return json.dumps({"manifest": body, "sha256": _digest(body)}, indent=1)


def read_manifest(place: Checkpoint | Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedError: it is not there, not JSON, not a manifest, or not as it was written.
        OSError: it cannot be read, which says nothing about it.
        RunError: it is of a later format.
    """
    checkpoint = Checkpoint.at(place)
    try:
        wrapped = json.loads(checkpoint.storage.read(checkpoint.file(MANIFEST)))
        body = wrapped["manifest"]
        if _digest(body) != wrapped["sha256"]:
            raise DamagedError(f"{checkpoint}/{MANIFEST}: its digest does not match")
        if body["format"] > FORMAT:
            raise RunError(f"checkpoint {checkpoint} has format {body['format']}, this Mootron reads up to {FORMAT}; use a later one")
        return Manifest.model_validate(body)
    except RunError:
        raise
    except (FileNotFoundError, ValueError, KeyError, TypeError) as fault:
        raise DamagedError(f"{checkpoint}/{MANIFEST}: {fault}") from None


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
