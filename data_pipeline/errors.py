"""Errors that a user of `data_pipeline/` can mend."""


class DataError(ValueError):
    """A corpus, tokenizer or shard is missing, damaged or does not fit; the message says which and what to do."""
