"""Text to token ids and back, and the mark that ends a document.

The end of a document is a token where the tokenizer has one (byte-level BPE: `<|endofdocument|>`), or the plain text
`<STORY_SEP>` as in the paper's SentencePiece protocol (MoEUT training code: ordinary text, not a reserved piece), or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.documents import digest_of_file
from data_pipeline.errors import DataError
from data_pipeline.manifest import TokenizerManifest, load_manifest

END_TOKEN = "<|endofdocument|>"
STORY_SEPARATOR = "<STORY_SEP>"
# What existing tokenizers call the end of a document or a sequence, best first.
_KNOWN_ENDS = (END_TOKEN, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<EOT>")


class Tokenizer(Protocol):
    """A tokenizer of a prepared set. `end_of_document` is None where no single token ends a document."""

    vocab_size: int
    end_of_document: int | None
    digest: str

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing in it is taken for a special token."""

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text and of the mark that ends it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids (byte-level BPE: exact; SentencePiece: up to its own normalisation of blanks)."""


class ByteLevelBPE:
    """A tokenizer.json of Hugging Face `tokenizers`."""

    def __init__(self, path: Path, document_end: str) -> None:
        tokenizers = _import("tokenizers", path)
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as fault:  # the Rust side raises bare Exception
            raise DataError(f"tokenizer {path} cannot be read: {fault}") from None
        # Otherwise a document that writes about the end token would contain it.
        self._inner.encode_special_tokens = True
        self._inner.no_truncation()
        self._inner.no_padding()
        self.vocab_size: int = max(self._inner.get_vocab(with_added_tokens=True).values()) + 1
        self.digest = digest_of_file(path)
        self.end_of_document = self._find_end(path) if document_end == "token" else None
        self._separator = STORY_SEPARATOR if document_end == "story_sep" else ""

    def _find_end(self, path: Path) -> int:
        for name in _KNOWN_ENDS:
            if (found := self._inner.token_to_id(name)) is not None:
                return int(found)
        known = ", ".join(_KNOWN_ENDS)
        raise DataError(f"tokenizer {path} has none of the end tokens {known}; set tokenizer.document_end to story_sep or none")

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """See Tokenizer."""
        marked = [text + self._separator for text in texts] if self._separator else list(texts)
        ids = [encoding.ids for encoding in self._inner.encode_batch_fast(marked, add_special_tokens=False)]
        end = [] if self.end_of_document is None else [self.end_of_document]
        return [document + end for document in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))


class SentencePiece:
    """A SentencePiece .model; its `</s>` ends a document where `document_end` is token."""

    def __init__(self, path: Path, document_end: str) -> None:
        sentencepiece = _import("sentencepiece", path)
        try:
            self._inner = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as fault:
            raise DataError(f"tokenizer {path} cannot be read: {fault}") from None
        self.vocab_size: int = self._inner.vocab_size()
        self.digest = digest_of_file(path)
        self.end_of_document: int | None = None
        if document_end == "token":
            if self._inner.eos_id() < 0:
                raise DataError(f"tokenizer {path} has no </s>; set tokenizer.document_end to story_sep or none")
            self.end_of_document = int(self._inner.eos_id())
        self._separator = STORY_SEPARATOR if document_end == "story_sep" else ""

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return list(self._inner.encode(text))

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """See Tokenizer."""
        end = [] if self.end_of_document is None else [self.end_of_document]
        return [list(ids) + end for ids in self._inner.encode([text + self._separator for text in texts], num_threads=1)]

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return str(self._inner.decode([int(token) for token in ids]))


def open_tokenizer(path: Path, document_end: str) -> Tokenizer:
    """A tokenizer by its file's ending; `document_end` is token, story_sep or none.

    Raises:
        DataError: the file is missing, damaged or of an unknown form.
    """
    if not path.is_file():
        raise DataError(f"tokenizer {path} does not exist; set tokenizer.path to a tokenizer.json or a SentencePiece .model")
    if path.suffix == ".json":
        return ByteLevelBPE(path, document_end)
    if path.suffix == ".model":
        return SentencePiece(path, document_end)
    raise DataError(f"tokenizer {path} must end in .json (Hugging Face tokenizers) or .model (SentencePiece)")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a prepared set.

    Raises:
        DataError: it is missing or is not the one the shards were made with.
    """
    manifest = load_manifest(folder)
    pinned: TokenizerManifest = manifest.tokenizer
    found = open_tokenizer(folder / pinned.file, pinned.document_end)
    if found.digest != pinned.digest:
        raise DataError(f"{folder / pinned.file} is not the tokenizer of these shards (its digest differs); prepare the set again")
    return found


def _import(package: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise DataError(f"tokenizer {path} needs the package {package}: pip install {package}") from None
