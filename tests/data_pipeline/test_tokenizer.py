"""Tokenizers: exact round trips, document ends, the paper's SentencePiece settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.tokenizer import END_TOKEN, ByteLevelBPE, SentencePiece, open_tokenizer
from data_pipeline.tokenizer_training import split_long_lines, train_tokenizer

NASTY = f"naïve\tcafé\r\n\x00\x01 日本語 🙂 {END_TOKEN} x1234567890  \n\n    indented\n"


@pytest.fixture(scope="module")
def byte_bpe(tmp_path_factory: pytest.TempPathFactory) -> ByteLevelBPE:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_tokenizer(TokenizerConfig(vocab_size=300), ["the cat sat on the mat and the dog sat too " * 20], path)
    return ByteLevelBPE(path, "token")


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> SentencePiece:
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    config = TokenizerConfig(kind="sentencepiece_bpe", vocab_size=260)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(100)]
    texts = [f"in {year} the cat {rng.choice(words)} sat on mat {year % 97} " * 3 for year in range(1900, 2025)]
    long_line = "zebra quagga okapi " * 2000
    train_tokenizer(config, [*texts, long_line], path)
    return SentencePiece(path, "story_sep")


def test_byte_bpe_round_trip_is_exact(byte_bpe: ByteLevelBPE) -> None:
    assert byte_bpe.decode(byte_bpe.encode(NASTY)) == NASTY
    assert max(byte_bpe.encode(NASTY)) < byte_bpe.vocab_size <= 300


def test_every_document_ends_in_the_end_token_and_only_there(byte_bpe: ByteLevelBPE) -> None:
    documents = byte_bpe.encode_documents([NASTY, "", "the cat"])
    assert byte_bpe.end_of_document == 0
    assert [document.count(0) for document in documents] == [1, 1, 1]
    assert [document[-1] for document in documents] == [0, 0, 0]
    assert documents[0][:-1] == byte_bpe.encode(NASTY)
    assert byte_bpe.decode([0]) == END_TOKEN


def test_training_is_deterministic(byte_bpe: ByteLevelBPE, tmp_path: Path) -> None:
    texts = [f"sentence {number} about {number * 7 % 13} things " for number in range(500)]
    for name in ("a.json", "b.json"):
        train_tokenizer(TokenizerConfig(vocab_size=400), iter(texts), tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_sentencepiece_splits_digits(sentencepiece: SentencePiece) -> None:
    inner = sentencepiece._inner
    pieces = [inner.id_to_piece(token) for token in range(inner.vocab_size())]
    assert inner.vocab_size() == 260
    assert not [piece for piece in pieces if any(character.isdigit() for character in piece) and len(piece.lstrip("\u2581")) > 1]
    assert len(sentencepiece.encode("2024")) >= 4


def test_long_lines_are_not_dropped(sentencepiece: SentencePiece) -> None:
    assert sentencepiece.decode(sentencepiece.encode("zebra quagga okapi")) == "zebra quagga okapi"
    line = "word " * 5000 + "x" * 5000
    pieces = list(split_long_lines([line]))
    assert max(len(piece.encode()) for piece in pieces) <= 4192
    assert "".join(pieces) == line


def test_story_separator_is_plain_text_after_every_document(sentencepiece: SentencePiece) -> None:
    (document,) = sentencepiece.encode_documents(["the cat sat"])
    assert sentencepiece.end_of_document is None
    assert sentencepiece.decode(document) == "the cat sat<STORY_SEP>"
    assert document == sentencepiece.encode("the cat sat<STORY_SEP>")
    assert sentencepiece._inner.unk_id() not in document


def test_a_sentencepiece_file_can_end_documents_with_its_token(sentencepiece: SentencePiece, tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    path.write_bytes(sentencepiece._inner.serialized_model_proto())
    tokenizer = open_tokenizer(path, "token")
    assert tokenizer.end_of_document == 2 and tokenizer.encode_documents(["cat"])[0][-1] == 2
    assert open_tokenizer(path, "none").encode_documents(["cat"])[0] == tokenizer.encode("cat")


def test_faults_of_tokenizer_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.json does not exist; set tokenizer.path"):
        open_tokenizer(tmp_path / "missing.json", "token")
    for name in ("bad.json", "bad.model"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            open_tokenizer(tmp_path / name, "token")
    (tmp_path / "vocab.bin").write_text("")
    with pytest.raises(DataError, match=r"must end in .json"):
        open_tokenizer(tmp_path / "vocab.bin", "token")
    with pytest.raises(DataError, match=r"data.tokenizer.vocab_size 8000 cannot be trained: .*use more text or a smaller vocabulary"):
        train_tokenizer(TokenizerConfig(kind="sentencepiece_bpe", vocab_size=8000), ["a few words"], tmp_path / "x.model")
