"""Train a tokenizer on the corpus: byte-level BPE (fast), or SentencePiece BPE as in the paper."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline.config import TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.files import written_beside
from data_pipeline.tokenizer import END_TOKEN, STORY_SEPARATOR

# SentencePiece drops lines over max_sentence_length (4,192 bytes) without an error.
_LINE_CHARACTERS = 1000


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], path: Path) -> None:
    """Train on `texts` and write the tokenizer to `path`.

    Raises:
        DataError: there is too little text for the vocabulary (SentencePiece).
    """
    data = train_byte_bpe(texts, config.vocab_size) if config.kind == "byte_bpe" else train_sentencepiece(texts, config)
    with written_beside(path) as file:
        file.write(data)


def train_byte_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """tokenizer.json of a byte-level BPE; token 0 is the end of a document, the next 256 are the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True)).encode()


def train_sentencepiece(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """A SentencePiece BPE with split_digits, all else default (MoEUT training code, arXiv:2405.16039).

    The separator is part of the training text, as it was there, so that its letters are in the vocabulary.
    """
    import sentencepiece

    model = io.BytesIO()
    marked = (text + STORY_SEPARATOR for text in texts) if config.resolved_end == "story_sep" else texts
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=split_long_lines(marked),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            split_digits=True,
            minloglevel=2,
        )
    except RuntimeError as fault:
        reason = str(fault).splitlines()[0]
        mend = "use more text or a smaller vocabulary"
        raise DataError(f"data.tokenizer.vocab_size {config.vocab_size} cannot be trained: {reason}; {mend}") from None
    return model.getvalue()


def split_long_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines of at most 1,000 characters (4,000 bytes), broken at blanks where there are any."""
    for text in texts:
        for line in text.splitlines():
            while len(line) > _LINE_CHARACTERS:
                blank = line.rfind(" ", 1, _LINE_CHARACTERS)
                stop = blank if blank > 0 else _LINE_CHARACTERS
                yield line[:stop]
                line = line[stop:]
            if line.strip():
                yield line
