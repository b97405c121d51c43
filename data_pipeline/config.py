"""What a training set is, as data: the `data:` part of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from data_pipeline.source_config import SourceConfig, Strict


class TokenizerConfig(Strict):
    """How text becomes tokens."""

    kind: Literal["byte_bpe", "sentencepiece_bpe", "file"] = "byte_bpe"
    """`byte_bpe` and `sentencepiece_bpe` are trained on the corpus; `file` loads a tokenizer.json or a SentencePiece .model."""
    vocab_size: int = Field(default=4096, ge=257)
    """Tokens of a trained tokenizer; equal to `model.vocab_size`."""
    path: str | None = None
    """The file of kind `file`."""
    train_megabytes: float = Field(default=16.0, gt=0.0)
    """How much of the corpus a tokenizer is trained on, in 10^6 bytes: a fair sample."""
    document_end: Literal["auto", "token", "story_sep", "none"] = "auto"
    """What follows every document: a `token`, the plain text `<STORY_SEP>` (`story_sep`; the paper's protocol) or nothing; `auto` is
    story_sep for `sentencepiece_bpe` and token for the others."""

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
    """Sources, tokenizer, window length and how the stream is read."""

    folder: str
    """Where the prepared set lives; a relative path is below MOOTRON_HOME (default: the project)."""
    sources: list[SourceConfig] = Field(min_length=1)
    """The sources of documents."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer."""
    seq_len: int = Field(default=256, ge=2)
    """Predicted tokens in a window; windows overlap by one token, so that every token is predicted once."""
    held_out_fraction: float = Field(default=0.02, gt=0.0, lt=0.5)
    """Share of a source's text that is held out where `held_out` of the source is null."""
    deduplicate: bool = True
    """Leave out documents that are copies, or nearly, of one that is kept."""
    document_mask: bool = False
    """Keep attention inside a document and restart its positions (off in the paper's recipes)."""
    order: Literal["shuffled", "streams"] = "shuffled"
    """`shuffled` goes through a permutation of the windows every epoch; `streams` cuts the source into `global_batch` streams that
    follow each other, and a step takes the next window of each (the paper's protocol; one source only)."""
    seed: int = 0
    """Decides what is held out, and trains the tokenizer."""
    order_seed: int | None = None
    """Decides the order of the samples; null: `seed`."""
    loader_workers: int = Field(default=1, ge=0)
    """Processes of a rank that read ahead; 0: none, the rank reads for itself."""
    prefetch: int = Field(default=4, ge=1)
    """Steps that each of them reads ahead."""
    on_damage: Literal["stop", "skip"] = "stop"
    """A window that cannot be read ends the run (`stop`), or is left out, logged and counted (`skip`)."""

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
