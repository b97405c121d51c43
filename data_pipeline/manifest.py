"""What a prepared set is: its manifest, and the checks that it is whole and the one a recipe asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.documents import digest_of, digest_of_file
from data_pipeline.errors import DataError
from data_pipeline.source_config import SourceConfig

MANIFEST = "manifest.json"
FORMAT = 2
SPLITS: tuple[Literal["train"], Literal["held_out"]] = ("train", "held_out")
Split = Literal["train", "held_out"]

# Above this, digests of shards are compared only when asked for.
# How a source is read by the stream, not what it holds.
_STREAM_FIELDS = {"proportion"}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerManifest(_Frozen):
    """The tokenizer file in the set's folder; `end_of_document` is its token id, if a single token ends a document."""

    kind: str
    file: str
    vocab_size: int
    document_end: Literal["token", "story_sep", "none"]
    end_of_document: int | None
    digest: str


class SplitManifest(_Frozen):
    """Documents, UTF-8 bytes of text, tokens (end marks included) and windows of one split of a source."""

    documents: int
    text_bytes: int
    tokens: int
    windows: int


class SourceManifest(_Frozen):
    """One source. `overlap` is the share of its distinct held-out 13-grams of words that also occur in any train split."""

    digest: str
    documents: int
    exact_duplicates: int
    near_duplicates: int
    over_budget: int
    overlap: float
    splits: dict[Split, SplitManifest]


class Manifest(_Frozen):
    """A whole prepared set. `recipe` holds the fields that decide its content; `indices` the digests of shard indices."""

    format: int
    recipe: dict[str, Any]
    seq_len: int
    token_bytes: int
    tokenizer: TokenizerManifest
    sources: dict[str, SourceManifest]
    indices: dict[str, str]

    @property
    def digest(self) -> str:
        """Names the set's content."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def overlap(self) -> float:
        """The greatest overlap of a source."""
        return max(source.overlap for source in self.sources.values())

    def windows(self, split: Split) -> dict[str, int]:
        """Windows of each source, in the order in which global ids count them."""
        return {name: source.splits[split].windows for name, source in self.sources.items()}


def content_fields(config: DataConfig) -> dict[str, Any]:
    """The fields of a recipe that decide what the prepared set holds, as JSON values."""
    return {
        "sources": [source.model_dump(mode="json", exclude=_STREAM_FIELDS) for source in config.sources],
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "seq_len": config.seq_len,
        "held_out_fraction": config.held_out_fraction,
        "deduplicate": config.deduplicate,
        "seed": config.seed,
    }


def split_folder(folder: Path, source: str, split: Split) -> Path:
    """Where the shards of one split of a source lie."""
    return folder / source / split


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared set.

    Raises:
        DataError: there is none, or it is damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{folder} holds no prepared data set (no {MANIFEST}); prepare it first, or set data.folder") from None
    except (OSError, ValueError) as fault:
        raise DataError(f"{path} cannot be read: {fault}; remove {folder} and prepare it again") from None
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise DataError(f"{path} has format {values.get('format')}, this version reads {FORMAT}; remove {folder} and prepare it again")
    try:
        return Manifest.model_validate(values)
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged ({place}: {first['msg']}); remove {folder} and prepare it again") from None


def check(folder: Path, config: DataConfig, verify: bool = False) -> Manifest:
    """The manifest, after a check that the set is whole and is what the recipe asks for.

    Every index, every shard's size and the tokenizer's digest are compared; with `verify` every shard's digest too, which
    reads all of the set (each window has a digest of its own, compared when it is read). Shards are left to the reading of
    their windows where `on_damage` is `skip`.

    Raises:
        DataError: the set is missing, was made from another recipe, or a file of it is missing or damaged.
    """
    manifest = load_manifest(folder)
    _check_recipe(folder, manifest, config)
    tokenizer = folder / manifest.tokenizer.file
    if not tokenizer.is_file():
        raise DataError(f"tokenizer {tokenizer} is missing; remove {folder} and prepare it again")
    if digest_of_file(tokenizer) != manifest.tokenizer.digest:
        raise DataError(f"{tokenizer} is not the tokenizer of these shards (its digest differs); remove {folder} and prepare it again")
    shards = [shard for place, digest in manifest.indices.items() for shard in _listed_shards(folder, place, digest)]
    if config.on_damage == "skip":
        return manifest
    for path, size, digest in shards:
        _check_shard(folder, path, size, digest if verify else None)
    return manifest


def _check_recipe(folder: Path, manifest: Manifest, config: DataConfig) -> None:
    mend = f"prepare another data.folder, or remove {folder}"
    asked, made = content_fields(config), manifest.recipe
    if made["seq_len"] != asked["seq_len"]:
        raise DataError(f"data.seq_len is {asked['seq_len']} but the shards in {folder} are cut for {made['seq_len']}; {mend}")
    if made["tokenizer"] != asked["tokenizer"]:
        raise DataError(
            f"data.tokenizer is {_shown(asked['tokenizer'])} but the shards in {folder} were made with {_shown(made['tokenizer'])}; {mend}"
        )
    path = config.tokenizer.path
    if path is not None and Path(path).is_file() and digest_of_file(Path(path)) != manifest.tokenizer.digest:
        raise DataError(f"data.tokenizer.path {path} is another tokenizer than the one the shards in {folder} were made with; {mend}")
    sources = [_source_fields(SourceConfig.model_validate(source)) for source in made["sources"]]  # of a version with fewer fields
    if sources != asked["sources"]:
        names = [source.name for source in config.sources if _source_fields(source) not in sources]
        which = ", ".join(names) or "a source was removed or moved"
        raise DataError(f"the shards in {folder} are from another corpus: data.sources differs ({which}); {mend}")
    for field in ("held_out_fraction", "deduplicate", "seed"):
        if made[field] != asked[field]:
            raise DataError(f"data.{field} is {asked[field]} but the shards in {folder} were made with {made[field]}; {mend}")


def _source_fields(source: SourceConfig) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude=_STREAM_FIELDS)


def _shown(tokenizer: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in tokenizer.items() if value is not None)


def _listed_shards(folder: Path, place: str, digest: str) -> list[tuple[Path, int, str]]:
    """(path, bytes, SHA-256) of every shard that the index in `place` names."""
    index = folder / place
    if not index.is_file():
        raise DataError(f"shard index {index} is missing; remove {folder} and prepare it again")
    if digest_of_file(index) != digest:
        raise DataError(f"shard index {index} is damaged (its digest differs); remove {folder} and prepare it again")
    shards = [shard["raw_data"] for shard in json.loads(index.read_text())["shards"]]
    return [(index.parent / shard["basename"], shard["bytes"], shard["hashes"]["sha256"]) for shard in shards]


def _check_shard(folder: Path, path: Path, size: int, digest: str | None) -> None:
    mend = f"remove {folder} and prepare it again"
    if not path.is_file():
        raise DataError(f"shard {path} is missing; {mend}")
    if (found := path.stat().st_size) != size:
        raise DataError(f"shard {path} is damaged: {found} bytes where its index says {size}; {mend}")
    if digest is not None and digest_of_file(path) != digest:
        raise DataError(f"shard {path} is damaged (its digest differs); {mend}")
