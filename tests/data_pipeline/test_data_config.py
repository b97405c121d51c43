"""The data part of a recipe: what the document mask and the end of a document need."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.manifest import content_fields
from data_pipeline.source_config import SourceConfig
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


HUB = {"name": "s", "kind": "hugging_face", "path": "some/set"}
FILES = {"name": "s", "kind": "jsonl", "path": "train.jsonl"}


@pytest.mark.parametrize(
    ("source", "held_out", "told"),
    [
        ({**HUB, "files": ["train*"]}, {"split": "validation"}, "would read the same files; set held_out.files"),
        ({**HUB, "files": ["train*"]}, {"files": ["train*"]}, "names the text that is trained on"),
        (HUB, {"split": "train"}, "names the text that is trained on"),
        ({**HUB, "max_megabytes": 5.0}, {"split": "validation"}, "with max_megabytes the whole data set would be fetched"),
        (FILES, {"split": "validation"}, "has neither splits nor files; name its held-out documents by held_out.path"),
        (FILES, {"path": "train.jsonl"}, "names the text that is trained on"),
        ({"name": "s", "kind": "installed_python"}, {"path": "x"}, "has no held-out documents of its own"),
        (HUB, {}, "held_out names nothing"),
        ({**FILES, "revision": "1"}, {"path": "x"}, "cannot have revision"),
    ],
)
def test_held_out_documents_are_never_those_of_training(source: dict, held_out: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SourceConfig.model_validate({**source, "held_out": held_out})


def test_held_out_documents_of_another_data_set_have_files_of_their_own() -> None:
    source = SourceConfig.model_validate({**HUB, "files": ["a*"], "revision": "1", "held_out": {"path": "other/set"}})
    held_out = source.published_held_out()
    assert held_out is not None and (held_out.path, held_out.files, held_out.revision, held_out.held_out) == ("other/set", None, None, None)
