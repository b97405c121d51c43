"""Errors that a user of `model/` can mend."""


class ModelError(ValueError):
    """A model cannot be built or loaded as asked; the message names the field, the value and the mend."""
