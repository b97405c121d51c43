"""The data part of a recipe: what the document mask and the end of a document need."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.manifest import content_fields
from data_pipeline.tokens import token_type


def test_document_end_depends_on_the_tokenizer() -> None:
    assert TokenizerConfig().resolved_end == "token"
    assert TokenizerConfig(kind="sentencepiece_bpe", vocab_size=8000).resolved_end == "story_sep"
    assert TokenizerConfig(kind="sentencepiece_bpe", document_end="none").resolved_end == "none"


def test_a_document_mask_needs_a_token() -> None:
    values = {"folder": "x", "sources": [{"name": "p", "kind": "installed_python"}], "document_mask": True}
    DataConfig.model_validate(values)
    with pytest.raises(ValidationError, match="document_mask needs documents that end in a token"):
        DataConfig.model_validate({**values, "tokenizer": {"kind": "sentencepiece_bpe"}})


def test_token_ids_take_two_bytes_below_65536() -> None:
    assert token_type(65_536).itemsize == 2
    assert token_type(65_537).itemsize == 4


def test_the_order_of_samples_has_a_seed_of_its_own() -> None:
    values = {"folder": "x", "sources": [{"name": "p", "kind": "installed_python"}], "seed": 3}
    plain, ordered = DataConfig.model_validate(values), DataConfig.model_validate(values | {"order_seed": 5})
    assert (plain.resolved_order_seed, ordered.resolved_order_seed) == (3, 5)
    assert content_fields(plain) == content_fields(ordered), "the prepared set is the same"
