"""What a training set is, as data: the `data:` part of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Base of all recipe parts: unknown keys are errors, values do not change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HeldOutConfig(Strict):
    """Held-out documents as a data set's publisher divided them: what differs from the source they belong to."""

    path: str | None = None
    split: str | None = None
    files: list[str] | None = None

    @model_validator(mode="after")
    def _something_differs(self) -> HeldOutConfig:
        if self == HeldOutConfig.model_construct():
            raise ValueError("held_out names nothing; set held_out.split, held_out.files or held_out.path")
        return self


class SourceConfig(Strict):
    """One source of documents.

    `installed_python` reads the Python source on this machine (standard library and packages) and needs no path.
    `text` and `code` read trees of files, `jsonl` (.jsonl, .gz, .zst) and `parquet` read `text_field` of records,
    `hugging_face` reads a dataset by `path` (its name), `subset` and `revision`; `files` are patterns of the dataset's files, of
    which only those are fetched.

    Held-out documents are drawn from the source, unless `held_out` says where its publisher keeps them.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]*$")
    kind: Literal["installed_python", "text", "code", "jsonl", "parquet", "hugging_face"]
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    files: list[str] | None = None
    split: str = "train"
    text_field: str = "text"
    suffixes: list[str] | None = None
    proportion: float = Field(default=1.0, gt=0.0)
    max_megabytes: float | None = Field(default=None, gt=0.0)
    held_out: HeldOutConfig | None = None

    @model_validator(mode="after")
    def _path_given(self) -> SourceConfig:
        if self.kind != "installed_python" and not self.path:
            raise ValueError(f"source '{self.name}' of kind {self.kind} needs a path")
        return self

    @model_validator(mode="after")
    def _only_of_hugging_face(self) -> SourceConfig:
        for field in ("files", "revision"):
            if getattr(self, field) is not None and self.kind != "hugging_face":
                raise ValueError(f"source '{self.name}' of kind {self.kind} cannot have {field}; leave it out, or use kind hugging_face")
        return self

    @model_validator(mode="after")
    def _held_out_is_another_text(self) -> SourceConfig:
        held_out, told = self.held_out, f"source '{self.name}' of kind {self.kind}"
        if held_out is None:
            return self
        if self.kind == "installed_python":
            raise ValueError(f"{told} has no held-out documents of its own; leave held_out out")
        if self.kind != "hugging_face" and (held_out.split is not None or held_out.files is not None):
            raise ValueError(f"{told} has neither splits nor files; name its held-out documents by held_out.path")
        if self.files is not None and held_out.files is None and held_out.path is None:
            raise ValueError(f"{told}: held_out would read the same files; set held_out.files")
        if self.max_megabytes is not None and self.kind == "hugging_face" and held_out.files is None:
            raise ValueError(f"{told}: with max_megabytes the whole data set would be fetched for its held-out split; set held_out.files")
        if self._place() == self.published_held_out()._place():  # type: ignore[union-attr]
            raise ValueError(f"{told}: held_out names the text that is trained on; set another held_out.path, split or files")
        return self

    def _place(self) -> tuple[object, ...]:
        return self.path, self.subset, self.revision, self.split, self.files

    def published_held_out(self) -> SourceConfig | None:
        """The source's own held-out documents as a source, None where they are drawn."""
        if self.held_out is None:
            return None
        changes = {**self.held_out.model_dump(exclude_none=True), "held_out": None, "max_megabytes": None}
        if self.held_out.path is not None:  # another data set has other files and revisions
            changes |= {"files": self.held_out.files, "revision": None}
        return self.model_copy(update=changes)


class TokenizerConfig(Strict):
    """`byte_bpe` and `sentencepiece_bpe` are trained on the corpus; `file` loads a tokenizer.json or a .model file.

    `document_end` is what follows every document: a `token`, the plain text `<STORY_SEP>` (the paper's protocol) or
    nothing; `auto` is story_sep for `sentencepiece_bpe` and token for the others.
    """

    kind: Literal["byte_bpe", "sentencepiece_bpe", "file"] = "byte_bpe"
    vocab_size: int = Field(default=4096, ge=257)
    path: str | None = None
    train_megabytes: float = Field(default=16.0, gt=0.0)
    document_end: Literal["auto", "token", "story_sep", "none"] = "auto"

    @property
    def resolved_end(self) -> Literal["token", "story_sep", "none"]:
        """`document_end` with `auto` decided."""
        if self.document_end != "auto":
            return self.document_end
        return "story_sep" if self.kind == "sentencepiece_bpe" else "token"

    @model_validator(mode="after")
    def _path_given(self) -> TokenizerConfig:
        if self.kind == "file" and not self.path:
            raise ValueError("tokenizer kind 'file' needs tokenizer.path, a tokenizer.json or a SentencePiece .model")
        return self


class DataConfig(Strict):
    """Sources, tokenizer, window length and how the stream is read.

    `folder` is where the prepared set lives (relative paths: below the project root). `seq_len` is the number of
    predicted tokens in a window; windows overlap by one token so that every token is predicted once.
    `seed` decides what is held out and trains the tokenizer; `order_seed` the order of the samples (`null`: `seed`).
    `document_mask` keeps attention inside a document and restarts its positions (off in the paper's recipes).
    `order`: `shuffled` goes through a permutation of the windows every epoch; `streams` cuts the source into `global_batch` streams
    that follow each other, and a step takes the next window of each (the paper's protocol; one source only).
    `on_damage`: a window that cannot be read ends the run (`stop`), or is left out, logged and counted (`skip`).
    """

    folder: str
    sources: list[SourceConfig] = Field(min_length=1)
    tokenizer: TokenizerConfig = TokenizerConfig()
    seq_len: int = Field(default=256, ge=2)
    held_out_fraction: float = Field(default=0.02, gt=0.0, lt=0.5)
    deduplicate: bool = True
    document_mask: bool = False
    order: Literal["shuffled", "streams"] = "shuffled"
    seed: int = 0
    order_seed: int | None = None
    loader_workers: int = Field(default=1, ge=0)
    prefetch: int = Field(default=4, ge=1)
    on_damage: Literal["stop", "skip"] = "stop"

    @property
    def resolved_order_seed(self) -> int:
        """`order_seed`, or `seed` where it is not given."""
        return self.seed if self.order_seed is None else self.order_seed

    @model_validator(mode="after")
    def _names_differ(self) -> DataConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"source names must differ, got {names}")
        return self

    @model_validator(mode="after")
    def _streams_of_one(self) -> DataConfig:
        if self.order == "streams" and len(self.sources) > 1:
            raise ValueError(f"order 'streams' goes through one source, there are {len(self.sources)}; set order to shuffled")
        return self

    @model_validator(mode="after")
    def _mask_can_see_documents(self) -> DataConfig:
        if self.document_mask and self.tokenizer.resolved_end != "token":
            raise ValueError(
                f"document_mask needs documents that end in a token, but tokenizer.document_end is {self.tokenizer.resolved_end}; "
                "set tokenizer.document_end to token or document_mask to false"
            )
        return self
